package uffd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StartConfig says how to start a page server as a process of its own.
type StartConfig struct {
	// Binary is a program with the subcommand of Command; empty for the one that is running.
	Binary string
	// Config is what is served. Logger is not handed on: the process logs JSON to LogPath.
	Config Config
	// LogPath is the file that gets the server's log, made with mode 0600 and appended to. A server writes a
	// few lines in its life.
	LogPath string
	// ReadyTimeout bounds the wait until the server listens; 0 for 30 s. It takes some 10 ms, and more for long
	// headers.
	ReadyTimeout time.Duration
}

// Process is a running page server. It lives on when the agent ends; the next agent needs nothing from it
// but its end, for which Adopt and Guard are.
type Process struct {
	id    Identity
	pidfd *os.File
	child *exec.Cmd // nil for an adopted one
	done  chan struct{}
	err   error // set before done is closed

	released atomic.Bool
}

// logTail is how much of the log an error quotes, in bytes.
const logTail = 2048

// Start starts a page server in a session of its own and returns when it listens at its socket. ctx bounds
// the start alone. On an error nothing is left running.
func Start(ctx context.Context, cfg StartConfig) (*Process, error) {
	name := cfg.Binary
	if cfg.Binary == "" {
		// By its path it might be a newer version by now.
		cfg.Binary, name = "/proc/self/exe", os.Args[0]
	}
	if cfg.ReadyTimeout == 0 {
		cfg.ReadyTimeout = 30 * time.Second
	}
	if _, err := cfg.Config.withDefaults(); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(cfg.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start a page server: %w", err)
	}
	defer log.Close()
	pidfd := -1
	cmd := exec.Command(cfg.Binary, append([]string{CommandName}, cfg.Config.Args()...)...) //nolint:noctx // it outlives every context
	cmd.Args[0] = name
	// The agent's secrets are none of its business.
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a page server: %w", err)
	}
	// Not reaped yet, so that the pid is its own even if it has died.
	id, err := identify(cmd.Process.Pid)
	if errors.Is(err, ErrGone) {
		id, err = Identity{PID: cmd.Process.Pid}, nil // the wait below tells how it died
	}
	if err == nil && pidfd < 0 {
		pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0)
	}
	if err == nil {
		err = unix.SetNonblock(pidfd, true)
	}
	if err != nil {
		if pidfd >= 0 {
			_ = unix.Close(pidfd)
		}
		return nil, errors.Join(fmt.Errorf("start a page server: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	p := watch(id, pidfd, cmd)
	if err := p.untilReady(ctx, cfg); err != nil {
		return nil, errors.Join(err, p.Kill(context.WithoutCancel(ctx)))
	}
	return p, nil
}

// untilReady waits for the socket's file. Connecting to it is the VMM's.
func (p *Process) untilReady(ctx context.Context, cfg StartConfig) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.ReadyTimeout)
	defer cancel()
	for wait := time.Millisecond; ; wait = 5 * time.Millisecond {
		if info, err := os.Lstat(cfg.Config.Socket); err == nil && info.Mode().Type() == os.ModeSocket {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("start a page server: it ended at once (%w): %s", p.err, tail(cfg.LogPath))
		case <-ctx.Done():
			return fmt.Errorf("start a page server: wait for %s: %w", cfg.Config.Socket, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logTail {
		_, _ = f.Seek(-logTail, io.SeekEnd) // else the beginning is quoted
	}
	b, _ := io.ReadAll(io.LimitReader(f, logTail)) // as much as there is
	return string(b)
}

// Adopt takes over a page server that an earlier agent started. It fails with ErrGone where that has ended,
// while no agent guarded its VMM: if the VMM lives, it has to be killed now.
func Adopt(id Identity) (*Process, error) {
	if id.PID <= 1 {
		return nil, fmt.Errorf("adopt page server %d: not its pid", id.PID)
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("adopt page server %d: %w: %w", id.PID, ErrGone, err)
	}
	// The descriptor pins whoever has the pid now, which is then compared.
	if err := id.check(); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt page server: %w", err), unix.Close(fd))
	}
	return watch(id, fd, nil), nil
}

func watch(id Identity, pidfd int, child *exec.Cmd) *Process {
	p := &Process{id: id, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), child: child, done: make(chan struct{})}
	go p.await()
	return p
}

// await parks, without a thread, until the process has ended or Release was called.
func (p *Process) await() {
	defer close(p.done)
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
	}
	if err != nil {
		p.err = err
		return
	}
	if p.child != nil {
		p.err = p.child.Wait()
	}
	_ = p.pidfd.Close()
}

// Identity names the process, for a journal.
func (p *Process) Identity() Identity { return p.id }

// Done is closed when the server has ended, or was released.
func (p *Process) Done() <-chan struct{} { return p.done }

// Release stops watching and lets the server live on, for an agent that goes down.
func (p *Process) Release() {
	p.released.Store(true)
	_ = p.pidfd.Close()
	<-p.done
}

// Kill ends the server with SIGKILL and waits for that. Its VMM hangs from then on: kill that first, upon
// which the server ends by itself. One that is gone is no error.
func (p *Process) Kill(ctx context.Context) error {
	// An error of the file itself says that it is closed, which await does when the process has ended.
	if raw, err := p.pidfd.SyscallConn(); err == nil {
		var sent error
		_ = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
		if sent != nil && !errors.Is(sent, unix.ESRCH) {
			return fmt.Errorf("kill page server %d: %w", p.id.PID, sent)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of page server %d: %w", p.id.PID, ctx.Err())
	}
}

// grace is how long Guard gives a VMM whose server has ended to have ended too, as the two do within
// milliseconds of each other when the VMM goes first.
const grace = 200 * time.Millisecond

// ErrUnserved says that a VMM was killed because its page server had ended before it.
var ErrUnserved = errors.New("the page server ended before its vmm")

// Guard sees to it that a VMM does not outlive its page server, without which it would hang at the next
// missing page for ever. It returns nil when the VMM has ended first, which closes vmm, and the error of ctx
// when that ends. When the server ends first it calls kill, which must end the VMM, with a context that does
// not end with ctx, and returns ErrUnserved. It must not be called on a released Process.
func (p *Process) Guard(ctx context.Context, vmm <-chan struct{}, kill func(context.Context) error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-vmm:
		return nil
	case <-p.done:
	}
	select {
	case <-ctx.Done(): // no reason to let the VMM hang
	case <-vmm:
		return nil
	case <-time.After(grace):
	}
	if p.released.Load() {
		return fmt.Errorf("guard a vmm: page server %d was released", p.id.PID)
	}
	return errors.Join(fmt.Errorf("page server %d: %w", p.id.PID, ErrUnserved), kill(context.WithoutCancel(ctx)))
}
