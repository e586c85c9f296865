// Package agent is the program on each host: it wires the real parts into the sandbox Manager, answers
// the control plane by Connect, and proxies to the guests' ports.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"wrenn/impl/network"
	"wrenn/impl/portproxy"
	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
	"wrenn/impl/transport"
	"wrenn/impl/transport/hopserver"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

// Version is the agent's own.
const Version = "0.1.0"

// shutdownTimeout bounds the end of an agent: requests under way, then all sandboxes when they go too.
const shutdownTimeout = 90 * time.Second

// gracePeriod is what requests under way get to finish once the agent has stopped.
const gracePeriod = 2 * time.Second

// host is everything that Run takes up and puts down.
type host struct {
	cfg     Config
	unlock  func() error
	network *network.Host
	disks   *rootfs.Store
	manager *sandbox.Manager
	proxy   *portproxy.Host
	handler *handler
	part    *networkPart
	memory  *memoryPart
	guests  guestPart
}

// Run serves until ctx ends. It returns nil after an orderly end, and otherwise what went wrong, with
// nothing left running.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	// A VMM works in its sandbox's directory, where paths relative to the agent's lead elsewhere.
	if cfg.ImageDir, err = filepath.Abs(cfg.ImageDir); err != nil {
		return fmt.Errorf("agent: find image-dir: %w", err)
	}
	// A busy port is found before anything is changed. Requests wait until what is alive is adopted.
	listener, err := listen(ctx, cfg.Listen)
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // the server has closed it, or nobody used it
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	h := &host{cfg: cfg}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := h.open(ctx, background, listener.Addr().String()); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it had begun
		}
		return err
	}
	// What has to be undone is undone beside the first requests.
	finish, err := h.manager.Recover()
	if err != nil {
		return err
	}
	return h.serve(ctx, listener, finish)
}

// open takes up the host's parts in the order in which close puts them down again.
func (h *host) open(ctx, background context.Context, addr string) error {
	var err error
	if err := os.MkdirAll(h.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("agent: make its directory: %w", err)
	}
	if h.unlock, err = lockHost(ctx, record{Dir: h.cfg.Dir, Addr: addr}); err != nil {
		return err
	}
	if err := clearProbes(ctx, probeDir(h.cfg)); err != nil {
		return err
	}
	choice := Choose(ctx, h.cfg)
	h.logChoice(choice)
	resolvers := h.cfg.Resolvers
	if len(resolvers) == 0 {
		if resolvers, err = network.Resolvers(); err != nil {
			return err
		}
	}
	upstreams, err := h.cfg.upstreams()
	if err != nil {
		return err
	}
	if h.network, err = network.NewHost(network.Config{Logger: h.cfg.Logger, Dir: h.cfg.Dir, Resolvers: resolvers, Upstreams: upstreams}); err != nil {
		return err
	}
	if err := h.network.Setup(ctx); err != nil {
		return err
	}
	h.disks, err = rootfs.NewStore(rootfs.Config{
		ImageDir: h.cfg.ImageDir, Dir: filepath.Join(h.cfg.Dir, "disks"), Ready: h.cfg.ReadyDisks, Logger: h.cfg.Logger,
	})
	if err != nil {
		return err
	}
	if h.part, err = newNetworkPart(h.cfg, h.network); err != nil {
		return err
	}
	h.memory = newMemoryPart(h.cfg)
	return h.assemble(choice, &vmmPart{choice: choice, resolvers: resolvers, memory: h.memory, dump: h.cfg.DumpMemory, logger: h.cfg.Logger, background: background})
}

// assemble makes the Manager and what serves it.
func (h *host) assemble(choice Choice, vmm *vmmPart) error {
	memoryMiB, err := guestMemory(h.cfg.MemoryMiB)
	if err != nil {
		return err
	}
	h.manager, err = sandbox.NewManager(sandbox.Config{
		Dir: filepath.Join(h.cfg.Dir, "sandboxes"), Logger: h.cfg.Logger, Network: h.part,
		Disk: newDiskPart(h.cfg, h.disks), Memory: h.memory, VMM: vmm, Guest: &h.guests, BootTimeout: h.cfg.BootTimeout, MemoryMiB: memoryMiB, Limits: h.cfg.limits(),
		OnEnd: func(id string) { h.proxy.EvictProxy(id) },
	})
	if err != nil {
		return err
	}
	h.proxy = portproxy.NewHost(portproxy.HostConfig{
		Lookup: lookup(h.manager), Logger: h.cfg.Logger,
	})
	h.handler = &handler{manager: h.manager, disks: h.disks, choice: choice, version: Version, memoryMiB: memoryMiB, networks: h.part}
	return nil
}

func (h *host) serve(ctx context.Context, listener net.Listener, finish func(context.Context) (sandbox.Recovered, error)) error {
	mux := http.NewServeMux()
	mux.Handle(hostagentv1connect.NewHostAgentServiceHandler(h.handler))
	server := transport.NewProxyServer(h.proxy.Protect(h.cfg.Token, mux))
	server.ErrorLog = slog.NewLogLogger(h.cfg.Logger.Handler(), slog.LevelWarn)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(transport.Listen(listener, nil)) }()
	recovered := make(chan struct{})
	go func() {
		defer close(recovered)
		h.reportRecovery(finish(ctx))
		h.fillDisks()
		h.part.pool.Start()
	}()
	addr := listener.Addr().(*net.TCPAddr).AddrPort() //nolint:forcetypeassert // net.Listen("tcp") gives no other
	h.cfg.Logger.Info("agent listens", "addr", addr, "vmm", h.handler.choice.Name)
	if h.cfg.OnListen != nil {
		h.cfg.OnListen(addr)
	}
	var err error
	select {
	case <-ctx.Done():
		h.cfg.Logger.Info("agent stops", "destroy", h.cfg.DestroyAtExit, "sandboxes", len(h.manager.List()))
	case err = <-failed:
	}
	<-recovered
	return errors.Join(err, h.stop(ctx, server))
}

// stop ends the sandboxes or lets them go, and cuts the connections that are left: a stream has no end
// of its own.
func (h *host) stop(ctx context.Context, server *hopserver.Server) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	running := h.manager.List()
	err := h.manager.Close(ctx, h.cfg.DestroyAtExit)
	for _, s := range running {
		h.proxy.EvictProxy(s.ID)
	}
	h.proxy.Close()
	graceful, cancel := context.WithTimeout(ctx, gracePeriod)
	defer cancel()
	if server.Shutdown(graceful) != nil {
		err = errors.Join(err, server.Close())
	}
	return err
}

func (h *host) close() error {
	var errs []error
	h.guests.lines.close()
	if h.memory != nil {
		h.memory.close()
	}
	if h.disks != nil {
		errs = append(errs, h.disks.Close())
	}
	if h.part != nil {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		errs = append(errs, h.part.pool.Close(ctx))
	}
	if h.network != nil {
		errs = append(errs, h.network.Close())
	}
	// Sandboxes that are left, whatever the reason, keep the rules that isolate them.
	if h.network != nil && h.cfg.DestroyAtExit && !sandboxesLeft(h.cfg.Dir) {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		errs = append(errs, h.network.Teardown(ctx))
	}
	if h.unlock != nil {
		errs = append(errs, h.unlock())
	}
	return errors.Join(errs...)
}

func (h *host) reportRecovery(r sandbox.Recovered, err error) {
	if err != nil {
		h.cfg.Logger.Error("an earlier agent left something that could not be cleared", "error", err)
	}
	if len(r.Adopted)+len(r.Kept)+len(r.Paused)+len(r.Undone)+len(r.Slots) > 0 {
		h.cfg.Logger.Info("cleared up after an earlier agent", "adopted", r.Adopted, "paused", r.Paused, "failed", r.Kept, "undone", r.Undone, "networks", r.Slots)
	}
}

// fillDisks makes ready disks of every template before the first create asks for one.
func (h *host) fillDisks() {
	templates, err := h.disks.Templates()
	if err != nil {
		h.cfg.Logger.Warn("cannot list the templates", "error", err)
	}
	for _, t := range templates {
		h.disks.Fill(t)
	}
}

func (h *host) logChoice(c Choice) {
	if c.Err != nil {
		h.cfg.Logger.Error("no VMM works here; every create will be refused", "error", c.Err)
		return
	}
	h.cfg.Logger.Info("VMM chosen", "vmm", c.Name, "reason", c.Reason)
}
