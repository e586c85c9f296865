// Package qemu is the stand-in for Firecracker on machines without hardware virtualization: one process
// per microVM that speaks Firecracker's HTTP API and command line and runs the guest on QEMU.
//
// It keeps Firecracker's states, statuses and error texts, opens files and TAPs when they are configured,
// and ends when the guest does. Snapshots have a state file of their own, so neither VMM loads the other's.
// It differs where emulation cannot follow: no balloon, vsock, MMDS, hot-plug and huge pages (400 with a clear fault_message), a powered-off guest ends the
// process, one-time bursts of rate limiters are not enforced, a Diff holds every change since boot or load,
// and a load by Uffd takes all pages from the page server before it answers.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"wrenn/impl/transport"
)

// Config is what the command line and the environment say.
type Config struct {
	// SocketPath is where the API listens; it must not exist yet. It stays when the process ends, as
	// Firecracker's does.
	SocketPath string
	// ID names the instance in GET /: letters, digits and hyphens, 1 to 64.
	ID string
	// QEMU is the program, Accel "kvm" or "tcg".
	QEMU, Accel string
	// BodyLimit bounds a request's body, in bytes.
	BodyLimit int64
	// ConfigFile configures and starts the guest without calls; NoAPI leaves the API out.
	ConfigFile string
	NoAPI      bool
	// LogPath, Level and Metrics set up logger and metrics before any call.
	LogPath, Level, Metrics string
	// Stdin and Stdout become the guest's console.
	Stdin, Stdout *os.File

	sink  *logSink
	level *slog.LevelVar
}

// Run serves the API until the guest has ended, and returns the exit code.
func Run(cfg Config) (int, error) {
	cfg.sink, cfg.level = &logSink{out: os.Stderr}, new(slog.LevelVar)
	cfg.level.Set(slog.LevelWarn) // stderr may be the console file: no chatter
	log := slog.New(slog.NewTextHandler(cfg.sink, &slog.HandlerOptions{Level: cfg.level}))
	m := newMachine(cfg, log)
	defer m.close()
	if err := m.observe(); err != nil {
		return exitError, err
	}
	served := make(chan error, 1)
	if !cfg.NoAPI {
		listener, err := listen(cfg.SocketPath)
		if err != nil {
			return exitError, err
		}
		server := transport.NewUnixServer(m, log)
		go func() { served <- server.Serve(listener) }()
		defer func() {
			<-served //nolint:errcheck // it ends by being closed
		}()
		defer shut(server, log)
	}
	if cfg.ConfigFile != "" {
		raw, err := os.ReadFile(cfg.ConfigFile)
		if err == nil {
			err = m.applyFile(raw)
		}
		if err != nil {
			return exitBadConfig, fmt.Errorf("configuration file %s: %w", cfg.ConfigFile, err)
		}
	}
	select {
	case <-m.ended:
		return m.code, m.failure()
	case err := <-served:
		served <- err
		return exitError, fmt.Errorf("serve the api: %w", err)
	}
}

// observe applies the flags for logger and metrics.
func (m *machine) observe() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.Level != "" || m.cfg.LogPath != "" {
		l := loggerConfig{}
		if m.cfg.Level != "" {
			l.Level = &m.cfg.Level
		}
		if m.cfg.LogPath != "" {
			l.LogPath = &m.cfg.LogPath
		}
		if err := m.putLogger(l); err != nil {
			return err
		}
	}
	if m.cfg.Metrics != "" {
		return m.putMetrics(metricsConfig{MetricsPath: m.cfg.Metrics})
	}
	return nil
}

// failure tells why a guest ended, where it was not by itself.
func (m *machine) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.code == exitOK {
		return nil
	}
	if m.fatal != nil {
		return m.fatal
	}
	return fmt.Errorf("qemu was ended (%s), not by its guest; it says: %s", m.guest.cmd.ProcessState, m.guest.stderr)
}

// listen makes the API socket. It refuses an existing path, as Firecracker does: two VMMs on one socket
// must not happen.
func listen(path string) (net.Listener, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, faultf("RunWithApiError error: Failed to open the API socket at: %s. Check that it is not already used.", path)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open the api socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // Firecracker leaves its socket behind
	return newLimitedListener(l), nil
}

// shut ends the server: a call that is being answered gets a second, idle connections none.
func shut(server *http.Server, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		log.Info("connections cut at exit", "error", errors.Join(err, server.Close()))
	}
}
