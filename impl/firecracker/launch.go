package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LaunchConfig says how to start one VMM.
type LaunchConfig struct {
	// Binary is the path of firecracker or firecracker-qemu.
	Binary string
	// ID is the microVM's id: letters, digits and hyphens, at most 64 (Firecracker's rule).
	ID string
	// Netns is the name of the network namespace (as in `ip netns`); empty for the caller's own.
	Netns string
	// Dir is the VMM's working directory, where its relative paths start: those of drives, which a
	// snapshot records as they were given, and of snapshots. Empty for the caller's own.
	Dir string
	// SocketPath is where the VMM puts its API socket, under 104 bytes. It must not exist yet, and must
	// be absolute where Dir is given.
	SocketPath string
	// ConsolePath is the file that gets the guest's console and the VMM's own messages. It is created
	// with mode 0600 and appended to; CapConsole bounds it.
	ConsolePath string
	// ExtraArgs are further arguments of the VMM.
	ExtraArgs []string
	// Env holds further variables ("NAME=value") of the VMM, which otherwise gets PATH alone: the
	// agent's secrets are none of its business.
	Env []string
	// ReadyTimeout bounds the wait for the API socket; 0 means 30 s. Firecracker needs some 10 ms.
	ReadyTimeout time.Duration
}

// vmmPath is the PATH of a VMM: where `ip` and QEMU live on Debian.
const vmmPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// consoleTail is how much of the console an error quotes, in bytes.
const consoleTail = 2048

// Launch starts a VMM in a mount namespace and session of its own and returns once its API socket
// accepts connections. ctx and cfg.ReadyTimeout bound the start only: the VMM outlives ctx. A VMM that
// dies during the start is an error which quotes the end of its console; on every error nothing is left
// running. It needs root, for the namespaces.
func Launch(ctx context.Context, cfg LaunchConfig) (*Process, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	console, err := os.OpenFile(cfg.ConsolePath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the console file: %w", err)
	}
	defer console.Close()
	p, err := start(cfg, console)
	if err != nil {
		return nil, err
	}
	if err := p.untilReady(ctx, cfg); err != nil {
		// The caller's context may be over; the clean-up has a deadline of its own.
		killErr := p.Kill(context.WithoutCancel(ctx))
		return nil, errors.Join(err, killErr)
	}
	return p, nil
}

func (cfg LaunchConfig) check() error {
	for _, f := range []struct{ name, value string }{
		{"Binary", cfg.Binary}, {"ID", cfg.ID}, {"SocketPath", cfg.SocketPath}, {"ConsolePath", cfg.ConsolePath},
	} {
		if f.value == "" {
			return fmt.Errorf("launch a vmm: %s is empty", f.name)
		}
	}
	// sun_path holds 108 bytes; 104 leaves room for the suffixes that QEMU's sockets get.
	if len(cfg.SocketPath) >= 104 {
		return fmt.Errorf("launch a vmm: socket path %q has %d bytes, the limit is 103", cfg.SocketPath, len(cfg.SocketPath))
	}
	// exec of unshare succeeds whether the VMM exists or not, so a missing one is told here.
	if _, err := exec.LookPath(cfg.Binary); err != nil {
		return fmt.Errorf("launch a vmm: %w", err)
	}
	if err := cfg.checkDir(); err != nil {
		return err
	}
	if _, err := os.Lstat(cfg.SocketPath); err == nil {
		return fmt.Errorf("launch a vmm: socket %s: %w", cfg.SocketPath, os.ErrExist)
	}
	return nil
}

// checkDir refuses a Dir that is none, and paths that would mean another file there than they do here.
func (cfg LaunchConfig) checkDir() error {
	if cfg.Dir == "" {
		return nil
	}
	if info, err := os.Stat(cfg.Dir); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("launch a vmm: working directory %q is not a directory", cfg.Dir), err)
	}
	if !filepath.IsAbs(cfg.SocketPath) || !filepath.IsAbs(cfg.Binary) && filepath.Base(cfg.Binary) != cfg.Binary {
		return fmt.Errorf("launch a vmm: socket %q and binary %q must be absolute, since the vmm works in %q",
			cfg.SocketPath, cfg.Binary, cfg.Dir)
	}
	return nil
}

// argv is the whole command. Each program replaces itself with the next one, so the pid that is started
// is the VMM's.
func (cfg LaunchConfig) argv() []string {
	argv := []string{"unshare", "--mount", "--"}
	if cfg.Netns != "" {
		argv = append(argv, "ip", "netns", "exec", cfg.Netns)
	}
	argv = append(argv, cfg.Binary, "--api-sock", cfg.SocketPath, "--id", cfg.ID)
	return append(argv, cfg.ExtraArgs...)
}

func start(cfg LaunchConfig, console *os.File) (*Process, error) {
	pidfd := -1
	argv := cfg.argv()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // the VMM outlives every context
	// Neither unshare nor `ip netns exec` leaves the directory.
	cmd.Dir = cfg.Dir
	cmd.Env = append([]string{vmmPath}, cfg.Env...)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start vmm %v: %w", argv, err)
	}
	id, err := identify(cmd.Process.Pid)
	if errors.Is(err, ErrGone) {
		// It has died already; the wait for readiness tells how, from the console.
		id, err = Identity{PID: cmd.Process.Pid}, nil
	}
	if err == nil && pidfd < 0 {
		// Not reaped yet, so the pid cannot have been reused.
		pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0)
	}
	if err == nil {
		err = unix.SetNonblock(pidfd, true)
	}
	if err != nil {
		if pidfd >= 0 {
			_ = unix.Close(pidfd) // the error below is the one to tell
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("watch vmm %v: %w", argv, err)
	}
	return watch(id, pidfd, cmd), nil
}

// untilReady waits until the API socket accepts a connection.
func (p *Process) untilReady(ctx context.Context, cfg LaunchConfig) error {
	limit := cfg.ReadyTimeout
	if limit == 0 {
		limit = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// The first look comes after 1 ms, then every 5 ms: real Firecracker is up within 10 ms.
	wait := time.NewTimer(time.Millisecond)
	defer wait.Stop()
	for {
		select {
		case <-p.done:
			return fmt.Errorf("vmm %s died during its start, %s; its console ends with: %s",
				cfg.Binary, p.ExitStatus(), tail(cfg.ConsolePath))
		case <-ctx.Done():
			return fmt.Errorf("wait for the api socket of vmm %s: %w; its console ends with: %s",
				cfg.Binary, ctx.Err(), tail(cfg.ConsolePath))
		case <-wait.C:
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", cfg.SocketPath)
		if err == nil {
			return conn.Close()
		}
		wait.Reset(5 * time.Millisecond)
	}
}
