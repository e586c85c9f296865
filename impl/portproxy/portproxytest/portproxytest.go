// Package portproxytest runs the whole proxy, control plane's edge and agent, on loopback, for suites that
// want to see programs through it: every sandbox id leads to one address, port to port. It can put back
// defects that proxies have had, so that a suite shows that it would find them.
package portproxytest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"wrenn/impl/portproxy"
	"wrenn/impl/portproxy/internal/former"
	"wrenn/impl/transport"
	"wrenn/impl/transport/hopserver"
)

// AgentToken is the token of every Chain's agent.
const AgentToken = "token-of-the-agent"

// Config says what a Chain is like; the zero value is a proxy without defects.
type Config struct {
	// JoinPath makes both clean paths with path.Join, as they did before they carried them byte for byte.
	JoinPath bool
	// LeaveReferences makes both pass Location, Refresh and Set-Cookie on as the guest sent them.
	LeaveReferences bool
	// Guest is where every sandbox id leads; zero means this machine's loopback.
	Guest netip.Addr
	// EdgeListen and AgentListen are where the two listen; empty means 127.0.0.1:0.
	EdgeListen, AgentListen string
	// AtAgent, if set, is host:port of another Chain's agent: this one is an edge before it, and has none.
	AtAgent string
	// WithoutEdge makes a Chain an agent alone.
	WithoutEdge bool
	// Target is what the edge knows of every sandbox; its URL and Token are the chain's.
	Target portproxy.AgentTarget
	// TunnelIdle and MaxInFlight are those of portproxy.HostConfig.
	TunnelIdle  time.Duration
	MaxInFlight int
	// Logger may be nil.
	Logger *slog.Logger
}

func (c Config) defects() former.Defects {
	return former.Defects{JoinPath: c.JoinPath, LeaveReferences: c.LeaveReferences}
}

// Chain is an edge before an agent's proxy.
type Chain struct {
	// Edge is host:port of the public door. http://{port}-{id}.localhost:{its port}/ leads to
	// 127.0.0.1:{port}, for any id.
	Edge string
	// Agent is host:port of the agent. /proxy/{id}/{port}/ leads there too, with AgentToken in
	// transport.AgentTokenHeader, or for a browser with ?wrenn-ticket= and portproxy.Ticket(AgentToken, id).
	Agent string

	host    *portproxy.Host
	door    *portproxy.Edge
	servers []*hopserver.Server
	idle    []interface{ CloseIdleConnections() }
	running sync.WaitGroup
}

// Start starts a Chain; the caller closes it.
func Start(cfg Config) (*Chain, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Chain{Agent: cfg.AtAgent}
	if err := c.startAgent(cfg); err != nil {
		return nil, err
	}
	if err := c.startEdge(cfg); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Chain) startAgent(cfg Config) (err error) {
	if cfg.AtAgent != "" {
		return nil
	}
	guest := cfg.Guest
	if !guest.IsValid() {
		guest = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	c.host = portproxy.NewFormerHost(portproxy.HostConfig{
		Lookup: func(context.Context, string) (netip.Addr, error) { return guest, nil },
		Logger: cfg.Logger, TunnelIdle: cfg.TunnelIdle, MaxInFlight: cfg.MaxInFlight,
	}, cfg.defects())
	c.Agent, err = c.serve(cfg.AgentListen, c.host.Protect(AgentToken, http.NotFoundHandler()))
	return err
}

func (c *Chain) startEdge(cfg Config) (err error) {
	if cfg.WithoutEdge {
		return nil
	}
	target := cfg.Target
	target.URL, target.Token = &url.URL{Scheme: "http", Host: c.Agent}, AgentToken
	bulk, streams := transport.NewProxyTransport(), transport.NewStreamProxyTransport()
	c.idle = append(c.idle, bulk, streams)
	c.door = portproxy.NewFormerEdge(portproxy.EdgeConfig{
		Lookup: func(context.Context, string) (portproxy.AgentTarget, error) { return target, nil },
		Bulk:   bulk, Streams: streams, TunnelIdle: cfg.TunnelIdle, Logger: cfg.Logger,
	}, cfg.defects())
	c.Edge, err = c.serve(cfg.EdgeListen, c.door)
	return err
}

func (c *Chain) serve(addr string, h http.Handler) (string, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	s := transport.NewProxyServer(h)
	s.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	c.servers = append(c.servers, s)
	c.running.Go(func() { _ = s.Serve(l) })
	return l.Addr().String(), nil
}

// Evict ends a sandbox's connections, as its destroy does.
func (c *Chain) Evict(id string) { c.host.EvictProxy(id) }

// Close ends everything.
func (c *Chain) Close() error {
	var errs []error
	for _, s := range c.servers {
		errs = append(errs, s.Close())
	}
	if c.door != nil {
		c.door.Close()
	}
	if c.host != nil {
		c.host.Close()
	}
	for _, t := range c.idle {
		t.CloseIdleConnections()
	}
	c.running.Wait()
	return errors.Join(errs...)
}
