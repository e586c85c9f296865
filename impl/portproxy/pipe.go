package portproxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"wrenn/impl/transport"
)

// A pipe is a connection to a guest's port by way of its agent, which carries bytes and knows nothing of them: to parse each
// message once more costs more than all else that an agent does for it. The control plane asks the agent for an upgrade at
// /pipe/{sandbox}/{port}, and what follows the agent's 101 is the guest's. Any other answer is a refusal as the sandbox's
// client is to have it. The agent keeps no clock on a pipe: who is at its end has one. A control plane that closes its
// half has said all; one that resets a pipe has no more use for it, which to the guest is a client that closes.
const (
	pipePrefix = "/pipe/"
	// The protocols that are asked for: one for streams, whose packets go first, and one for all else.
	pipeStream = "wrenn-stream"
	pipeBulk   = "wrenn-bulk"
)

// pipeOpen is an agent's answer to who may have a pipe. It is always these bytes, so that one knows where the guest's begin: a
// program may speak before it is spoken to.
func pipeOpen(protocol string) string {
	return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
}

// servePipe opens a pipe. Without an upgrade it says whether there could be one.
func (h *Host) servePipe(w http.ResponseWriter, r *http.Request) {
	id, port, _ := strings.Cut(strings.TrimPrefix(r.RequestURI, pipePrefix), "/")
	to, err := newRoute("path", id, port)
	if err != nil {
		writeBadRoute(w, err)
		return
	}
	g, err := h.lookup(r.Context(), to.id)
	if err != nil {
		h.refuseLookup(w, r, to, err)
		return
	}
	asked := protocol(r.Header)
	if asked != pipeBulk && asked != pipeStream {
		w.Header().Set("Upgrade", pipeStream+", "+pipeBulk)
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	if !g.begin(h.cfg.MaxInFlight) {
		lookupAnswer(to, errTooMany).write(w, r)
		return
	}
	conn, err := g.dialRetrying(r.Context(), "tcp", netip.AddrPortFrom(g.addr, to.port).String())
	if err != nil {
		g.end()
		h.refuseGuest(w, r, g, to, err)
		return
	}
	var flow *transport.Flow
	if asked == pipeStream {
		flow = transport.PreferLatency(r)
	} else {
		transport.PreferThroughput(r)
	}
	h.pipes.begin(w, &tunnel{guest: conn, flow: flow, done: g.end, pipe: true}, pipeOpen(asked))
}

// begin takes over w's connection, answers with head and joins it with t's guest.
func (ts *tunnels) begin(w http.ResponseWriter, t *tunnel, head string) {
	client, _, err := http.NewResponseController(w).Hijack() // whoever asks sends no more before the answer
	if err != nil {
		_ = t.guest.Close()
		t.done()
		return
	}
	t.client = client
	if _, err := io.WriteString(client, head); err == nil && ts.add(t) {
		ts.join(t)
		return
	}
	t.close(true)
	t.done()
}

// pipe is the way to one port of a sandbox.
type pipe struct {
	to       route
	agent    AgentTarget
	protocol string
}

// path is what is asked for at the agent.
func (p pipe) path() string { return pipePrefix + p.to.id + "/" + strconv.Itoa(int(p.to.port)) }

// way is p for transport.Direct.
func (p pipe) way() transport.Way {
	return transport.Way{Via: p.agent.URL, Behind: p.path(), Open: p.open}
}

// open makes of a connection to the agent one to the port.
func (p pipe) open(_ context.Context, c net.Conn) error {
	_, err := io.WriteString(c, "GET "+p.path()+" HTTP/1.1\r\nHost: "+p.agent.URL.Host+"\r\n"+transport.AgentTokenHeader+": "+p.agent.Token+
		"\r\nConnection: Upgrade\r\nUpgrade: "+p.protocol+"\r\n\r\n")
	if err != nil {
		return errors.Join(errAgent, err)
	}
	want := pipeOpen(p.protocol)
	head := make([]byte, len(want))
	n, err := io.ReadFull(c, head)
	if string(head[:n]) == want {
		return nil
	}
	if n == 0 {
		return errors.Join(errAgent, err)
	}
	res, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(head[:n]), c)), nil)
	if err != nil {
		return errors.Join(errAgent, err)
	}
	return refusalOf(res)
}

// askTimeout bounds the question why a guest has not answered. The agent knows it without asking anybody.
const askTimeout = 5 * time.Second

// ask returns why there could be no pipe, or errWouldOpen.
func (p pipe) ask(ctx context.Context, via Exchanger) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.agent.URL.Scheme+"://"+p.agent.URL.Host+p.path(), nil)
	if err != nil {
		return errors.Join(errAgent, err)
	}
	r.Header[transport.AgentTokenHeader] = []string{p.agent.Token}
	res, err := via.RoundTripBy(r, transport.Way{}, nil)
	if err != nil {
		return errors.Join(errAgent, err)
	}
	return refusalOf(res)
}

// errWouldOpen is what an agent says to who asks for a pipe without an upgrade, and errAgent what it is that could not
// be talked to.
var (
	errWouldOpen = errors.New("the sandbox may be reached")
	errAgent     = errors.New("agent")
)

// refusedError is an agent's refusal.
type refusedError struct{ answer answer }

// Error says what the client is told.
func (e *refusedError) Error() string {
	return fmt.Sprintf("agent refuses with %d: %s", e.answer.Code, e.answer.Message)
}

// maxRefusal bounds the body of a refusal in bytes; ours have some hundred.
const maxRefusal = 64 << 10

// refusalOf returns what an agent's answer says that is no pipe, and closes it.
func refusalOf(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, maxRefusal))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return errors.Join(errAgent, err)
	}
	if res.StatusCode == http.StatusUpgradeRequired {
		return errWouldOpen
	}
	refused := &refusedError{}
	err = json.Unmarshal(body, &refused.answer)
	if err != nil || refused.answer.Code != res.StatusCode || res.StatusCode == http.StatusUnauthorized { // of which no client knows
		return fmt.Errorf("%w answers %d: %.200q", errAgent, res.StatusCode, body)
	}
	return refused
}

// daemonTransport is an http.RoundTripper to a sandbox's daemon.
type daemonTransport struct {
	via  Exchanger
	pipe pipe
}

// NewDaemonTransport returns an http.RoundTripper to the daemon of sandbox id, for the control plane's own calls: they go where
// a client's calls by the proxy go, and share their connections. An agent's refusal is an answer.
func NewDaemonTransport(streams Exchanger, agent AgentTarget, id string) http.RoundTripper {
	return daemonTransport{streams, pipe{to: route{id: id, port: EnvdPort}, agent: agent, protocol: pipeStream}}
}

// RoundTrip makes one exchange.
func (d daemonTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := d.via.RoundTripBy(r, d.pipe.way(), httptrace.ContextClientTrace(r.Context()))
	var refused *refusedError
	if !errors.As(err, &refused) {
		return res, err
	}
	body, err := json.Marshal(refused.answer)
	return &http.Response{
		StatusCode: refused.answer.Code, Status: strconv.Itoa(refused.answer.Code) + " " + http.StatusText(refused.answer.Code), ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json; charset=utf-8"}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}, err
}
