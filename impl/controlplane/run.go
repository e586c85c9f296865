// Package controlplane is what users talk to: the REST API, the door to sandboxes' ports, and the memory of
// which sandbox lives on which host.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/portproxy"
	"wrenn/impl/store"
	"wrenn/impl/transport"
)

// shutdownGrace is how long API calls under way may take to finish once the control plane is told to end. A
// create on a fast host does; a slower one is cut off and cleaned up by the next start.
const shutdownGrace = 5 * time.Second

// Run runs a control plane until ctx ends, and then ends gracefully: API calls under way finish (5 s at
// most), connections to sandboxes are cut. Sandboxes live on. It returns nil if ctx was the reason to end.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.complete(); err != nil {
		return err
	}
	st, err := store.Open(ctx, cfg.Database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if cfg.BootstrapKey != "" {
		if err := st.AddKey(ctx, "bootstrap", cfg.BootstrapKey); err != nil {
			return err
		}
	}
	agents, err := connectAgents(cfg.Agents)
	if err != nil {
		return err
	}
	defer func() {
		for _, a := range agents {
			a.Close()
		}
	}()
	s, err := newServer(ctx, cfg, st, agents)
	if err != nil {
		return err
	}
	return s.run(ctx)
}

func connectAgents(configs []agentclient.Config) ([]*agentclient.Client, error) {
	var agents []*agentclient.Client
	for _, c := range configs {
		a, err := agentclient.New(c)
		if err != nil {
			return nil, err
		}
		agents = append(agents, a)
	}
	return agents, nil
}

// run listens, serves and reconciles until ctx ends or a listener fails.
func (s *server) run(ctx context.Context) error {
	var lc net.ListenConfig
	api, err := lc.Listen(ctx, "tcp", s.cfg.APIListen)
	if err != nil {
		return fmt.Errorf("listen for the API: %w", err)
	}
	proxy, err := lc.Listen(ctx, "tcp", s.cfg.ProxyListen)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for the sandbox proxy: %w", err), api.Close())
	}
	bulk := transport.NewProxyTransport()
	defer bulk.CloseIdleConnections()
	defer s.streams.CloseIdleConnections()
	edge := portproxy.NewEdge(portproxy.EdgeConfig{
		Lookup: s.lookup, Resumer: resumer{s}, Bulk: bulk, Streams: s.streams, Logger: s.cfg.Logger,
	})
	defer edge.Close()

	// Connections to sandboxes hang on ctx, so that tunnels end with it; API calls outlive it for the grace.
	apiServer, proxyServer := transport.NewServer(s), transport.NewProxyServer(edge)
	apiServer.ErrorLog = slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug)  // of clients, mostly
	proxyServer.ErrorLog = slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn) // of ourselves
	apiServer.BaseContext, proxyServer.BaseContext = func(net.Listener) context.Context { return context.WithoutCancel(ctx) }, ctx
	if s.cfg.tune != nil {
		s.cfg.tune(apiServer, proxyServer, s.streams)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.life = ctx
	var wg sync.WaitGroup
	var pacer *transport.Pacer
	if !s.cfg.Unpaced {
		pacer = transport.NewPacer() // of both doors: a client's terminals may come by one, and its bulk by the other
		wg.Go(func() { pacer.Run(ctx) })
	}
	wg.Go(func() { cancel(serve(apiServer, api, pacer)) })
	wg.Go(func() { cancel(serve(proxyServer, proxy, pacer)) })
	for _, a := range s.agents {
		wg.Go(func() { s.reconcileLoop(ctx, a) })
	}
	s.cfg.Logger.InfoContext(ctx, "control plane ready", "api", api.Addr().String(), "proxy", proxy.Addr().String(), "agents", len(s.agents))
	if s.cfg.Ready != nil {
		s.cfg.Ready(Addresses{API: api.Addr().String(), Proxy: proxy.Addr().String()})
	}
	<-ctx.Done()
	failure := context.Cause(ctx)
	if errors.Is(failure, context.Canceled) || errors.Is(failure, context.DeadlineExceeded) {
		failure = nil
	}
	err = errors.Join(failure, proxyServer.Close(), shutdown(apiServer))
	wg.Wait()
	s.sessions.Wait() // a server forgets a connection that has become a WebSocket
	s.cfg.Logger.Info("control plane ended")
	return err
}

// serve returns why it ended, or nil if it was told to.
func serve(srv interface{ Serve(l net.Listener) error }, l net.Listener, p *transport.Pacer) error {
	if err := srv.Serve(transport.Listen(l, p)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

func shutdown(srv *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return srv.Close()
	}
	return nil
}

// lookup tells the sandbox proxy where a sandbox is.
func (s *server) lookup(ctx context.Context, id string) (portproxy.AgentTarget, error) {
	row, err := s.store.GetRecent(ctx, id) // it is asked for each key that is typed
	switch {
	case errors.Is(err, store.ErrNotFound):
		return portproxy.AgentTarget{}, portproxy.ErrNotFound
	case err != nil:
		return portproxy.AgentTarget{}, err
	case row.State == store.Creating:
		return portproxy.AgentTarget{}, portproxy.ErrTransition
	case row.State != store.Running && !sleeps(row):
		return portproxy.AgentTarget{}, portproxy.ErrNotFound
	}
	agent := s.agent(row.Agent)
	if agent == nil {
		return portproxy.AgentTarget{}, portproxy.ErrUnreachable
	}
	target := portproxy.AgentTarget{URL: agent.URL(), Token: agent.Token(), MaskHost: row.MaskRequestHost}
	if row.PrivateTraffic {
		target.TrafficToken = s.trafficToken(row.ID)
	}
	if sleeps(row) {
		return target, portproxy.ErrPaused
	}
	return target, nil
}
