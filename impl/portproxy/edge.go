package portproxy

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

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
	Bulk http.RoundTripper
	// Streams carries the guest daemon's calls, over which terminals run (transport.NewStreamProxyTransport).
	Streams http.RoundTripper
	// Resumer, if set, wakes sandboxes for which Lookup says ErrPaused; without it they answer as unknown.
	Resumer Resumer
	// TunnelIdle is how long an upgraded connection may carry no byte either way; 0 means DefaultTunnelIdle.
	TunnelIdle time.Duration
	Logger     *slog.Logger
}

// Edge is the public door to sandboxes' ports.
type Edge struct {
	cfg           EdgeConfig
	bulk, streams *httputil.ReverseProxy
	tunnels       tunnels
	waker         waker
}

// routed is what the edge knows of a request when it hands it to a ReverseProxy.
type routed struct {
	to     route
	target AgentTarget
	host   string // as the client sent it
	byName bool   // it is {port}-{sandbox}
}

type routedKey struct{}

// NewEdge returns the control plane's proxy: it finds sandbox and port in the host name
// ({port}-{sandbox}.{domain}, whatever the domain) or in the headers E2b-Sandbox-Id and E2b-Sandbox-Port,
// and passes the request on to the agent's /proxy/{sandbox}/{port}. It must not stand behind an
// http.ServeMux, which would clean the path. The caller closes it.
func NewEdge(cfg EdgeConfig) *Edge {
	e := &Edge{cfg: cfg, waker: waker{resumer: cfg.Resumer}}
	e.tunnels.idle = cmp.Or(cfg.TunnelIdle, DefaultTunnelIdle)
	e.bulk, e.streams = e.newProxy(cfg.Bulk), e.newProxy(cfg.Streams)
	return e
}

// Close cuts the upgraded connections, which live on when the server around e has ended, and waits for
// their end. Requests under way are the server's to end.
func (e *Edge) Close() { e.tunnels.close() }

func (e *Edge) newProxy(rt http.RoundTripper) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:  upgrader{rt},
		BufferPool: bufferPool{},
		ErrorLog:   slog.NewLogLogger(e.cfg.Logger.Handler(), slog.LevelDebug),
		Rewrite:    rewriteAtEdge,
		ModifyResponse: func(res *http.Response) error {
			if hasReferences(res.Header) {
				in := res.Request.Context().Value(routedKey{}).(routed)
				nameForm{to: in.to, host: in.host, byName: in.byName}.rewriter().header(res.Header)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			to := r.Context().Value(routedKey{}).(routed).to
			if errors.Is(err, errUpgraded) || errors.Is(err, context.Canceled) {
				return // the tunnel begins, or the client has gone
			}
			e.cfg.Logger.WarnContext(r.Context(), "agent did not answer a proxied request", "sandbox", to.id, "port", to.port, "error", err)
			hostAnswer(to, err).write(w, r)
		},
	}
}

func rewriteAtEdge(pr *httputil.ProxyRequest) {
	to := pr.In.Context().Value(routedKey{}).(routed)
	dropPrivate(pr.Out.Header)
	pr.Out.Trailer = pr.In.Trailer // the map itself: it is filled when the body ends
	setTarget(pr, *to.target.URL, Path(to.to.id, to.to.port)+rawTarget(pr.In))
	if to.target.MaskHost != "" && to.to.port != EnvdPort {
		pr.Out.Host = strings.ReplaceAll(to.target.MaskHost, "${PORT}", strconv.Itoa(int(to.to.port)))
	}
	pr.Out.Header.Set(transport.AgentTokenHeader, to.target.Token)
	pr.Out.Header.Set("X-Forwarded-Host", pr.In.Host)
	if ip, _, err := net.SplitHostPort(pr.In.RemoteAddr); err == nil {
		pr.Out.Header.Set("X-Forwarded-For", ip)
	}
}

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
			return // the client has gone
		}
		a := lookupAnswer(to, err)
		if a.Code == http.StatusInternalServerError {
			e.cfg.Logger.ErrorContext(r.Context(), "sandbox could not be looked up", "sandbox", to.id, "error", err)
		}
		a.write(w, r)
		return
	}
	proxy, flow := e.bulk, (*transport.Flow)(nil)
	if to.isStream(r.URL.Path) {
		proxy, flow = e.streams, transport.PreferLatency(r)
	} else {
		transport.PreferThroughput(r)
	}
	_, _, byName := nameLabel(r.Host)
	in := routed{to: to, target: target, host: r.Host, byName: byName}
	e.tunnels.pass(proxy, flow, w, r.WithContext(context.WithValue(r.Context(), routedKey{}, in)), func() {})
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
