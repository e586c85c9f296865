// Package envd is the daemon in every guest: it starts processes, moves files and reports how the guest
// is doing, to whoever holds the token that the host sets once at /init.
package envd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/envd/files"
	"wrenn/impl/envd/filesystem"
	"wrenn/impl/envd/freezer"
	"wrenn/impl/envd/ports"
	"wrenn/impl/envd/process"
	"wrenn/impl/envd/settings"
)

// Version is the version of E2B's daemon whose features this one has; SDKs compare it to decide what
// they may ask for. 0.6.4 is the watch over network mounts; the next step that clients know (0.6.6) is
// the freezing of file systems.
const Version = "0.6.4"

// Port is where E2B's SDKs expect the daemon.
const Port = 49983

const (
	// readHeaderTimeout bounds a request's header, as in every server of the product.
	readHeaderTimeout = 10 * time.Second
	// idleTimeout outlasts the idle time of the proxies in front (610 s and 620 s, 10 s more per hop), so
	// that a connection is never closed from this side while a request is on its way.
	idleTimeout = 640 * time.Second
	// shutdownTimeout bounds how long open requests may end by themselves when the daemon is stopped.
	shutdownTimeout = 2 * time.Second
	// HTTP/2: the window of a connection is that of all its streams, so that an upload that nobody reads
	// cannot stop a keystroke beside it.
	maxStreams       = 64
	streamWindow     = 64 << 10
	connectionWindow = maxStreams * streamWindow
	// notSentLowat bounds what the kernel queues ahead of a connection's next byte; bulk data beyond it
	// would delay a terminal's echo on the same connection.
	notSentLowat = 64 << 10
)

// Config is what the daemon needs to know before the host has spoken to it.
type Config struct {
	// Addr is where to listen, host:port.
	Addr string
	// Guest says that the daemon is root in a guest of its own: it may set the clock and exempt itself
	// from the out-of-memory killer.
	Guest bool
	// Cgroups is where a cgroup2 hierarchy is mounted, in which the users' processes can be frozen; empty
	// means that they get signals.
	Cgroups string
	// ForwardPorts makes ports on the loopback reachable at the guest's addresses. Never on a machine that
	// others can reach: its local services would be open to them.
	ForwardPorts bool
	// InitSeconds is when the guest's first program started, in seconds of CLOCK_BOOTTIME; empty if unknown.
	InitSeconds string
	// ReadPatience is how long a reader of a process's output may stall; process.DefaultPatience if zero.
	ReadPatience time.Duration
	Log          *slog.Logger
	// Listening, if not nil, is called with the address once the daemon accepts connections.
	Listening func(net.Addr)

	tune func(*http.Server) // changes the server before its first use; for tests that shorten its clocks
}

// Run serves until ctx ends, then kills the processes that it started.
func Run(ctx context.Context, c Config) error {
	// The modes of files are the ones that requests ask for under the usual mask.
	unix.Umask(0o022)
	d := newDaemon(c)
	defer func() { d.close(); _ = d.freezer.Close() }()
	var lc net.ListenConfig
	lc.Control = boundQueue
	l, err := lc.Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", c.Addr, err)
	}
	d.listening = bootSeconds()
	srv := newServer(d.routes(), c.Log)
	d.conns.watch(srv)
	if c.tune != nil {
		c.tune(srv)
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	defer forwardPorts(ctx, c, l.Addr())()
	c.Log.Info("listening", "addr", l.Addr().String(), "version", Version)
	if c.Listening != nil {
		c.Listening(l.Addr())
	}
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", c.Addr, err)
	case <-ctx.Done():
	}
	d.close() // ends the streams, which Shutdown would wait for
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", c.Addr, err)
	}
	return nil
}

// forwardPorts starts what Config.ForwardPorts asks for; the returned function ends it.
func forwardPorts(ctx context.Context, c Config, own net.Addr) (stop func()) {
	if !c.ForwardPorts {
		return func() {}
	}
	except := []uint16{Port}
	if tcp, ok := own.(*net.TCPAddr); ok {
		except = append(except, tcp.AddrPort().Port())
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		ports.New(ports.Config{Own: except, Logger: c.Log}).Run(ctx)
	}()
	return func() { cancel(); <-over }
}

// newServer has no read or write timeout: streams live for days, files are as long as they are.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         p,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connectionWindow,
		},
	}
}

// daemon is what the handlers share.
type daemon struct {
	log       *slog.Logger
	guest     bool
	settings  *settings.Settings
	processes *process.Table
	tree      *filesystem.Handler
	files     *files.Handler
	cpu       *cpuMeter
	freezer   *freezer.Freezer
	rehearsal func() // of a freeze, begun soon after a restored guest was let go on
	conns     connections
	initAt    string  // seconds of CLOCK_BOOTTIME, or empty
	listening float64 // likewise
}

func newDaemon(c Config) *daemon {
	s := &settings.Settings{}
	freeze, err := freezer.New(c.Cgroups)
	if err != nil {
		c.Log.Warn("processes are frozen by signals", "error", err)
	}
	d := &daemon{
		log: c.Log, guest: c.Guest, initAt: c.InitSeconds,
		settings:  s,
		freezer:   freeze,
		processes: process.NewTable(c.Log, c.ReadPatience, c.Guest, freeze),
		tree:      filesystem.NewHandler(s),
		files:     files.NewHandler(s, c.Log),
		cpu:       newCPUMeter(),
		rehearsal: func() {},
	}
	if c.Guest {
		d.rehearsal = func() { time.AfterFunc(rehearseAfter, d.rehearse) }
	}
	return d
}

func (d *daemon) close() {
	if err := d.freezer.Thaw(); err != nil { // what is frozen cannot end
		d.log.Error("thaw the processes", "error", err)
	}
	d.processes.Close(shutdownTimeout)
	d.tree.Close()
}

func boundQueue(_, _ string, c syscall.RawConn) error {
	// Accepted connections inherit the option; a kernel without it serves all the same.
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
	})
}
