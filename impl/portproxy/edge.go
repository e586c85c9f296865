package portproxy

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"wrenn/impl/portproxy/internal/former"
	"wrenn/impl/transport"
)

// AgentTarget says how to reach the agent that holds a sandbox.
type AgentTarget struct {
	// URL is the agent's scheme and host; its path is ignored.
	URL *url.URL
	// Token is sent in transport.AgentTokenHeader.
	Token string
	// MaskHost is what the guest sees as Host instead of the public name, except on EnvdPort; ${PORT} stands
	// for the port. Empty means the public name.
	MaskHost string
	// TrafficToken is what requests must bring in the header E2b-Traffic-Access-Token, except to EnvdPort,
	// whose daemon has a token of its own. Empty means that the ports are public.
	TrafficToken string
}

// EdgeConfig is what the public door needs. Lookup, Bulk, Streams and Logger are required.
type EdgeConfig struct {
	// Lookup finds the agent of a sandbox. Its errors are ErrNotFound, ErrPaused, ErrTransition,
	// ErrUnreachable, or others, which answer 500.
	Lookup func(ctx context.Context, id string) (AgentTarget, error)
	// Bulk carries users' own ports and whole files (transport.NewProxyTransport).
	Bulk Exchanger
	// Streams carries the guest daemon's calls, over which terminals run (transport.NewStreamProxyTransport).
	Streams Exchanger
	// Resumer, if set, wakes sandboxes for which Lookup says ErrPaused; without it they answer as unknown.
	Resumer Resumer
	// TunnelIdle is how long an upgraded connection may carry no byte either way; 0 means DefaultTunnelIdle.
	TunnelIdle time.Duration
	Logger     *slog.Logger
}

// Edge is the public door to sandboxes' ports.
type Edge struct {
	cfg     EdgeConfig
	defects former.Defects
	tunnels tunnels
	waker   waker
}

// NewEdge returns the control plane's proxy: it finds sandbox and port in the host name
// ({port}-{sandbox}.{domain}, whatever the domain) or in the headers E2b-Sandbox-Id and E2b-Sandbox-Port,
// and passes the request on by way of the agent. It must not stand behind an http.ServeMux, which would clean the path. The
// caller closes it.
func NewEdge(cfg EdgeConfig) *Edge { return NewFormerEdge(cfg, former.Defects{}) }

// NewFormerEdge is NewEdge with defects, for the suites that must find them; see package portproxytest.
func NewFormerEdge(cfg EdgeConfig, defects former.Defects) *Edge {
	e := &Edge{cfg: cfg, defects: defects, waker: waker{resumer: cfg.Resumer}}
	e.tunnels.idle = cmp.Or(cfg.TunnelIdle, DefaultTunnelIdle)
	return e
}

// Close cuts the upgraded connections, which live on when the server around e has ended, and waits for
// their end. Requests under way are the server's to end.
func (e *Edge) Close() { e.tunnels.close() }

// ServeHTTP routes one request.
func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to, err := edgeRoute(r)
	if err == nil && !strings.HasPrefix(rawTarget(r), "/") {
		err = errors.New("the request's target must be a path") // "x:3/health" would be glued onto the port
	}
	if err != nil {
		writeBadRoute(w, err)
		return
	}
	if to.forbidden(r.URL.Path) {
		answer{SandboxID: to.id, Message: "This route is not public", Code: http.StatusNotFound}.write(w, r)
		return
	}
	target, err := e.find(r, to)
	if err != nil {
		if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
			abort()
		}
		a := lookupAnswer(to, err)
		if a.Code == http.StatusInternalServerError {
			e.cfg.Logger.ErrorContext(r.Context(), "sandbox could not be looked up", "sandbox", to.id, "error", err)
		}
		a.write(w, r)
		return
	}
	if to.isStream(r.URL.Path) {
		e.pass(w, r, pipe{to, target, pipeStream}, e.cfg.Streams, transport.PreferLatency(r))
	} else {
		transport.PreferThroughput(r)
		e.pass(w, r, pipe{to, target, pipeBulk}, e.cfg.Bulk, nil)
	}
}

// pass makes the exchange with a guest's port.
func (e *Edge) pass(w http.ResponseWriter, r *http.Request, by pipe, via Exchanger, flow *transport.Flow) {
	host, target := r.Host, rawTarget(r)
	if e.defects.JoinPath {
		target = path.Join("/", r.URL.Path)
	}
	p := newPassage(w, r, &url.URL{Scheme: "http", Host: "localhost:" + strconv.Itoa(int(by.to.port))}, target)
	p.via, p.way, p.flow = via, by.way(), flow
	if by.agent.MaskHost != "" && by.to.port != EnvdPort {
		r.Host = strings.ReplaceAll(by.agent.MaskHost, "${PORT}", strconv.Itoa(int(by.to.port)))
	}
	r.Header["X-Forwarded-Host"] = []string{host}
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		r.Header["X-Forwarded-For"] = []string{ip}
	}
	p.refine = func(h http.Header) {
		if hasReferences(h) && !e.defects.LeaveReferences {
			_, _, byName := nameLabel(host)
			newPathForm(by.to, r).rewriter().header(h)
			nameForm{to: by.to, host: host, byName: byName}.rewriter().header(h)
		}
	}
	p.fail = func(err error) { e.refuse(w, r, by, err) }
	e.tunnels.pass(p)
}

// refuse answers a request that a guest has not answered.
func (e *Edge) refuse(w http.ResponseWriter, r *http.Request, by pipe, err error) {
	refused := &refusedError{}
	switch ctx := r.Context(); {
	case errors.Is(err, context.Canceled):
		abort()
	case errors.As(err, &refused):
	case isDialError(err), errors.Is(err, errAgent): // nobody but the agent has been spoken to
		e.cfg.Logger.WarnContext(ctx, "agent did not answer", "sandbox", by.to.id, "port", by.to.port, "error", err)
		refused.answer = hostAnswer(by.to, err)
	default: // a sandbox that is no more has cut the connection, or the guest, or the agent was lost
		e.cfg.Logger.DebugContext(ctx, "guest did not answer", "sandbox", by.to.id, "port", by.to.port, "error", err)
		switch why := by.ask(ctx, e.cfg.Bulk); {
		case errors.Is(why, errWouldOpen):
			refused.answer = guestAnswer(by.to, err)
		case errors.As(why, &refused):
		default:
			refused.answer = hostAnswer(by.to, why)
		}
	}
	refused.answer.write(w, r)
}

// find looks the sandbox up, holds the traffic token against it, and wakes it where it sleeps.
func (e *Edge) find(r *http.Request, to route) (AgentTarget, error) {
	target, err := e.cfg.Lookup(r.Context(), to.id)
	if err != nil && !errors.Is(err, ErrPaused) {
		return AgentTarget{}, err
	}
	if target.TrafficToken != "" && to.port != EnvdPort &&
		subtle.ConstantTimeCompare([]byte(target.TrafficToken), []byte(r.Header.Get(headerTraffic))) != 1 {
		return AgentTarget{}, errTraffic // before it is woken
	}
	if err == nil {
		return target, nil
	}
	if err := e.waker.wake(r.Context(), to.id); err != nil {
		return AgentTarget{}, err
	}
	return e.cfg.Lookup(r.Context(), to.id)
}
