package portproxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"wrenn/impl/transport"
)

// AgentTarget says how to reach the agent that holds a sandbox.
type AgentTarget struct {
	// URL is the agent's scheme and host; its path is ignored.
	URL *url.URL
	// Token is sent in transport.AgentTokenHeader.
	Token string
}

// EdgeConfig is what the public door needs; all fields are required.
type EdgeConfig struct {
	// Lookup finds the agent of a sandbox. Its errors are ErrNotFound, ErrTransition, ErrUnreachable, or
	// others, which answer 500.
	Lookup func(ctx context.Context, id string) (AgentTarget, error)
	// Bulk carries users' own ports (transport.NewProxyTransport).
	Bulk http.RoundTripper
	// Streams carries the guest daemon's port, over which terminals run (transport.NewStreamTransport).
	Streams http.RoundTripper
	Logger  *slog.Logger
}

type edge struct {
	cfg           EdgeConfig
	bulk, streams *httputil.ReverseProxy
}

// routed is what the edge knows of a request when it hands it to a ReverseProxy.
type routed struct {
	to     route
	target AgentTarget
}

type routedKey struct{}

// NewEdge returns the control plane's proxy: it finds sandbox and port in the host name
// ({port}-{sandbox}.{domain}, whatever the domain) or in the headers E2b-Sandbox-Id and E2b-Sandbox-Port,
// and passes the request on to the agent's /proxy/{sandbox}/{port}. It must not stand behind an
// http.ServeMux, which would clean the path.
func NewEdge(cfg EdgeConfig) http.Handler {
	e := &edge{cfg: cfg}
	e.bulk, e.streams = e.newProxy(cfg.Bulk), e.newProxy(cfg.Streams)
	return e
}

func (e *edge) newProxy(rt http.RoundTripper) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     rt,
		FlushInterval: -1, // at once: an event stream's next byte may be hours away
		ErrorLog:      slog.NewLogLogger(e.cfg.Logger.Handler(), slog.LevelDebug),
		Rewrite:       rewriteAtEdge,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			to := r.Context().Value(routedKey{}).(routed).to
			if errors.Is(err, context.Canceled) {
				return // the client has gone
			}
			e.cfg.Logger.WarnContext(r.Context(), "agent did not answer a proxied request", "sandbox", to.id, "port", to.port, "error", err)
			hostAnswer(to, err).write(w, r)
		},
	}
}

func rewriteAtEdge(pr *httputil.ProxyRequest) {
	to := pr.In.Context().Value(routedKey{}).(routed)
	dropPrivate(pr.Out.Header)
	setTarget(pr, *to.target.URL, Path(to.to.id, to.to.port)+rawTarget(pr.In))
	pr.Out.Header.Set(transport.AgentTokenHeader, to.target.Token)
	pr.Out.Header.Set("X-Forwarded-Host", pr.In.Host)
	if ip, _, err := net.SplitHostPort(pr.In.RemoteAddr); err == nil {
		pr.Out.Header.Set("X-Forwarded-For", ip)
	}
}

// ServeHTTP routes one request.
func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	target, err := e.cfg.Lookup(r.Context(), to.id)
	if err != nil {
		a := lookupAnswer(to, err)
		if a.Code == http.StatusInternalServerError {
			e.cfg.Logger.ErrorContext(r.Context(), "sandbox could not be looked up", "sandbox", to.id, "error", err)
		}
		a.write(w, r)
		return
	}
	proxy := e.bulk
	if to.port == EnvdPort {
		proxy = e.streams
		transport.PreferLatency(r)
	}
	ctx := context.WithValue(r.Context(), routedKey{}, routed{to: to, target: target})
	pass(proxy, w, r.WithContext(ctx))
}
