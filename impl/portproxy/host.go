// Package portproxy carries HTTP and WebSocket traffic from the outside to the ports of sandboxes, byte
// for byte: at the control plane by host name or headers (NewEdge), at the agent by path (NewHost).
//
// The control plane passes a request on by a pipe (see pipe.go) through the agent to the guest's address; who comes to an
// agent by /proxy/{sandbox}/{port} is served by the agent itself. Nothing is cleaned, decoded, buffered or repeated on the way.
package portproxy

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"wrenn/impl/portproxy/internal/former"
	"wrenn/impl/transport"
)

// HostConfig is what an agent's proxy needs.
type HostConfig struct {
	// Lookup returns the address at which the host reaches a running sandbox. Its errors are ErrNotFound
	// (unknown, gone, paused), ErrTransition, or others, which answer 500. It is called for each request, so it must be fast.
	Lookup func(ctx context.Context, id string) (netip.Addr, error)
	// Dial connects to a guest; nil means transport.DialGuest. The connection must be a *net.TCPConn.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// MaxInFlight is how many exchanges a sandbox may have under way, and pipes open, which wait for their next exchange for
	// a quarter of a second, 15 s to the daemon; beyond it requests get 429. 0 means DefaultMaxInFlight.
	MaxInFlight int
	// TunnelIdle is how long an upgraded connection may carry no byte either way; 0 means DefaultTunnelIdle.
	TunnelIdle time.Duration
	Logger     *slog.Logger
}

// DefaultMaxInFlight is generous: each exchange costs the host a descriptor or two and some 30 KiB, so that
// one sandbox cannot use up the agent's, while no browser or SDK comes near it.
const DefaultMaxInFlight = 4096

// Host is an agent's port proxy. It expects /proxy/{sandbox}/{port}/..., for who comes by path, or /pipe/{sandbox}/{port}, by
// which the control plane comes, and requests that the agent has authenticated.
type Host struct {
	cfg     HostConfig
	defects former.Defects
	tunnels tunnels
	pipes   tunnels
	mu      sync.Mutex // orders the making of a guest against its eviction
	guests  sync.Map   // sandbox id → *guest
}

// NewHost returns an agent's proxy. It must not stand behind an http.ServeMux, which would clean the path:
// use Mount or Protect. The caller closes it.
func NewHost(cfg HostConfig) *Host { return NewFormerHost(cfg, former.Defects{}) }

// NewFormerHost is NewHost with defects, for the suites that must find them; see package portproxytest.
func NewFormerHost(cfg HostConfig, defects former.Defects) *Host {
	if cfg.Dial == nil {
		cfg.Dial = transport.DialGuest
	}
	cfg.MaxInFlight = cmp.Or(cfg.MaxInFlight, DefaultMaxInFlight)
	h := &Host{cfg: cfg, defects: defects}
	h.tunnels.idle = cmp.Or(cfg.TunnelIdle, DefaultTunnelIdle)
	return h
}

// Close cuts the upgraded connections and the pipes of all sandboxes, which live on when the server around h has ended,
// and waits for their end.
func (h *Host) Close() {
	h.tunnels.close()
	h.pipes.close()
}

// Mount returns a handler that sends every request whose raw path starts with /proxy/ or /pipe/ to h and all others
// to next.
func (h *Host) Mount(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.RequestURI, pathPrefix):
			h.ServeHTTP(w, r)
		case strings.HasPrefix(r.RequestURI, pipePrefix):
			h.servePipe(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// EvictProxy resets the sandbox's living connections and forgets everything about it. The agent calls it
// on destroy, on pause and when a sandbox fails, after Lookup has begun to refuse the sandbox, so that no
// request can bring it back.
func (h *Host) EvictProxy(id string) {
	h.mu.Lock()
	g, ok := h.guests.LoadAndDelete(id)
	h.mu.Unlock()
	if ok {
		g.(*guest).evict()
	}
}

// guest returns the entry of sandbox id at addr, and whether it is new. An entry with another address
// belongs to a former life and is evicted.
func (h *Host) guest(id string, addr netip.Addr) (g *guest, fresh bool) {
	if g, ok := h.guests.Load(id); ok && g.(*guest).addr == addr {
		return g.(*guest), false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.guests.Load(id); ok {
		if old.(*guest).addr == addr {
			return old.(*guest), false
		}
		old.(*guest).evict()
	}
	g = &guest{addr: addr, dial: h.cfg.Dial, conns: map[*guestConn]struct{}{}}
	g.transport = transport.NewGuestPortTransport(g.dialRetrying)
	g.streams = transport.NewGuestStreamTransport(g.dialRetrying)
	h.guests.Store(id, g)
	return g, true
}

// lookup finds the entry of sandbox id. The sandbox may end between the lookup and the making of an entry;
// asking again afterwards means that either EvictProxy saw the new entry or we see the sandbox's end.
func (h *Host) lookup(ctx context.Context, id string) (*guest, error) {
	addr, err := h.cfg.Lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	g, fresh := h.guest(id, addr)
	if fresh {
		if _, err := h.cfg.Lookup(ctx, id); err != nil {
			h.EvictProxy(id)
			return nil, err
		}
	}
	return g, nil
}

// ServeHTTP passes one request on to a guest.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to, rest, err := pathRoute(r.RequestURI)
	if err != nil {
		writeBadRoute(w, err)
		return
	}
	decoded := strings.TrimPrefix(r.URL.Path, pathPrefix+to.id+"/"+strconv.Itoa(int(to.port)))
	if to.forbidden(decoded) {
		answer{SandboxID: to.id, Message: "This route is not public", Code: http.StatusNotFound}.write(w, r)
		return
	}
	g, err := h.lookup(r.Context(), to.id)
	if err != nil {
		h.refuseLookup(w, r, to, err)
		return
	}
	if !g.begin(h.cfg.MaxInFlight) {
		lookupAnswer(to, errTooMany).write(w, r)
		return
	}
	if h.defects.JoinPath {
		rest = path.Join("/", decoded)
	}
	via, flow := g.transport, (*transport.Flow)(nil)
	if to.port == EnvdPort {
		via = g.streams
	}
	if to.isStream(decoded) {
		flow = transport.PreferLatency(r)
	} else {
		transport.PreferThroughput(r)
	}
	h.pass(w, r, g, to, rest, via, flow)
}

// pass makes the exchange with a guest.
func (h *Host) pass(w http.ResponseWriter, r *http.Request, g *guest, to route, rest string, via Exchanger, flow *transport.Flow) {
	client, public := r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Host"] // from our own control plane: the token says so
	p := newPassage(w, r, &url.URL{Scheme: "http", Host: netip.AddrPortFrom(g.addr, to.port).String()}, rest)
	p.via, p.flow, p.done = via, flow, g.end
	if client != nil {
		r.Header["X-Forwarded-For"] = client
	}
	if public != nil {
		r.Header["X-Forwarded-Host"] = public
	}
	p.refine = func(header http.Header) {
		if hasReferences(header) && !h.defects.LeaveReferences {
			newPathForm(to, r, g.addr).rewriter().header(header)
		}
	}
	p.fail = func(err error) { h.refuseGuest(w, r, g, to, err) }
	h.tunnels.pass(p)
}

// refuseLookup answers a request to a sandbox that cannot be had.
func (h *Host) refuseLookup(w http.ResponseWriter, r *http.Request, to route, err error) {
	a := lookupAnswer(to, err)
	if a.Code == http.StatusInternalServerError {
		h.cfg.Logger.ErrorContext(r.Context(), "sandbox could not be looked up", "sandbox", to.id, "error", err)
	}
	a.write(w, r)
}

// refuseGuest answers a request to a guest that has not been connected to, or has not answered.
func (h *Host) refuseGuest(w http.ResponseWriter, r *http.Request, g *guest, to route, err error) {
	if g.isEvicted() {
		err = errors.Join(errEvicted, err)
	} else if errors.Is(err, context.Canceled) {
		abort()
	}
	h.cfg.Logger.DebugContext(r.Context(), "guest did not answer", "sandbox", to.id, "port", to.port, "error", err)
	guestAnswer(to, err).write(w, r)
}
