package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// KillTimeout bounds how long Kill waits for the end of a process that has got SIGKILL. A process
// that the kernel cannot end in this time hangs in an uninterruptible call.
const KillTimeout = 30 * time.Second

// Process is a VMM that runs on its own: neither a request's context nor the end of the agent stops it.
// Its death is noticed by a pidfd, at the cost of one parked goroutine and no thread.
type Process struct {
	id    Identity
	pidfd *os.File
	child *exec.Cmd // nil for an adopted process
	done  chan struct{}

	mu     sync.Mutex
	status ExitStatus
	err    error
}

// ExitStatus tells how a VMM ended.
type ExitStatus struct {
	// Known is false for an adopted process: only a parent is told the exit status.
	Known bool
	// Code is the exit code, -1 if a signal ended the process. Firecracker's codes: 0 guest rebooted,
	// 1 general error, 152 bad configuration, 153 bad arguments.
	Code int
	// Signal ended the process, 0 if none did.
	Signal syscall.Signal
}

func (s ExitStatus) String() string {
	switch {
	case !s.Known:
		return "exit status unknown"
	case s.Signal != 0:
		return fmt.Sprintf("killed by signal %d (%s)", int(s.Signal), s.Signal)
	}
	return fmt.Sprintf("exit code %d", s.Code)
}

// Adopt takes over a living process that is not our child, such as a VMM that an earlier agent started.
// It fails with ErrGone where the process has ended or its pid was reused.
func Adopt(id Identity) (*Process, error) {
	if id.PID <= 1 {
		return nil, fmt.Errorf("adopt pid %d: not a VMM's pid", id.PID)
	}
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("adopt pid %d: open its pidfd: %w: %w", id.PID, ErrGone, err)
	}
	// The pid may have been reused between the check and the open; a second check closes the gap,
	// since the pidfd pins whichever process it has opened.
	if err := id.check(); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt: %w", err), unix.Close(fd))
	}
	return watch(id, fd, nil), nil
}

// watch starts the goroutine that notices the end. It owns pidfd.
func watch(id Identity, pidfd int, child *exec.Cmd) *Process {
	p := &Process{
		id:    id,
		pidfd: os.NewFile(uintptr(pidfd), fmt.Sprintf("pidfd of %d", id.PID)),
		child: child,
		done:  make(chan struct{}),
	}
	go p.await()
	return p
}

// Identity names the process, for a journal.
func (p *Process) Identity() Identity { return p.id }

// Done is closed when the process has ended, or when Release gave it up.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitStatus tells how the process ended; Known is false before Done is closed.
func (p *Process) ExitStatus() ExitStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Err is nil while the process runs and after it ended with code 0 or, for an adopted process, at all.
// Otherwise it tells the exit status, or why the process could not be watched.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && p.status.Known && (p.status.Code != 0 || p.status.Signal != 0) {
		return fmt.Errorf("vmm %d: %s", p.id.PID, p.status)
	}
	return p.err
}

// Signal sends a signal to the VMM itself. A process that has ended already is ErrGone.
func (p *Process) Signal(sig syscall.Signal) error { return p.send(sig, 0) }

// Kill sends SIGKILL to the VMM's process group and waits until the VMM is gone, at most KillTimeout or
// until ctx ends. Killing one that is gone is not an error.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.killGroup(); err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, KillTimeout)
	defer cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of killed vmm %d: %w", p.id.PID, ctx.Err())
	}
}

// Release stops watching and lets the process live on; Done is closed. For an agent that goes down.
func (p *Process) Release() {
	// Closing the file makes the watching goroutine give up.
	_ = p.pidfd.Close()
	<-p.done
}

// pidfdProcessGroup is PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, known to Linux 6.9 and later.
const pidfdProcessGroup = 1 << 2

func (p *Process) killGroup() error {
	err := p.send(syscall.SIGKILL, pidfdProcessGroup)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// An older kernel has no race-free signal to a group: end the leader by its pidfd. What it started
	// must end with it (firecracker-qemu sees to that with a parent-death signal).
	return p.send(syscall.SIGKILL, 0)
}

func (p *Process) send(sig syscall.Signal, flags int) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal vmm %d: %w: %w", p.id.PID, ErrGone, err)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) {
		sent = unix.PidfdSendSignal(int(fd), sig, nil, flags)
	}); err != nil {
		return fmt.Errorf("signal vmm %d: %w: %w", p.id.PID, ErrGone, err)
	}
	switch {
	case errors.Is(sent, unix.ESRCH):
		return fmt.Errorf("signal vmm %d: %w", p.id.PID, ErrGone)
	case sent != nil:
		return fmt.Errorf("signal vmm %d with %s: %w", p.id.PID, sig, sent)
	}
	return nil
}

// await parks until the pidfd is readable, which is when the process has ended, and reaps a child.
func (p *Process) await() {
	defer close(p.done)
	err := p.untilEnd()
	if errors.Is(err, os.ErrClosed) {
		return
	}
	// From here a late signal gets ErrGone instead of reaching a stranger: it goes by the pidfd alone.
	status := ExitStatus{}
	if err == nil && p.child != nil {
		status, err = reap(p.child)
	}
	p.mu.Lock()
	p.status, p.err = status, err
	p.mu.Unlock()
	_ = p.pidfd.Close()
}

func (p *Process) untilEnd() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch vmm %d: %w", p.id.PID, err)
	}
	var polled error
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if errors.Is(err, unix.EINTR) {
			return false
		}
		polled = err
		return err != nil || n > 0
	})
	if err == nil {
		err = polled
	}
	if err != nil {
		return fmt.Errorf("watch vmm %d: %w", p.id.PID, err)
	}
	return nil
}

func reap(child *exec.Cmd) (ExitStatus, error) {
	err := child.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return ExitStatus{}, fmt.Errorf("reap vmm %d: %w", child.Process.Pid, err)
	}
	status := ExitStatus{Known: true, Code: child.ProcessState.ExitCode()}
	if ws, ok := child.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status.Signal = ws.Signal()
	}
	return status, nil
}
