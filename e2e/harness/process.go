package harness

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Process is a program under test. Its output is printed, and filed as an artifact, when the test fails.
type Process struct {
	// Name is what logs and artifacts call it.
	Name string

	tb   testing.TB
	cmd  *exec.Cmd
	log  *Buffer
	done chan struct{}
	mute bool
}

// outputDelay is how long a program's output is waited for once it has ended: something that it has started
// may hold it open.
const outputDelay = time.Second

// start starts a program on the host. What is left of it at the test's end is told to end, and later killed.
// On the machine itself the end of the test, however it comes, makes the kernel tell it to end; on a Host it
// dies with the host.
func (h *Host) start(tb testing.TB, name string, cmd *exec.Cmd) *Process {
	tb.Helper()
	p := &Process{Name: name, tb: tb, cmd: cmd, log: &Buffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = p.log, p.log, outputDelay
	if h == nil {
		require.NoError(tb, startBound(cmd, p.done))
	} else {
		cmd.Dir = Root(tb) // a Host's threads are at its root
		require.NoError(tb, h.Do(cmd.Start))
	}
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	tb.Cleanup(p.cleanup)
	return p
}

// startBound starts a program that the kernel interrupts when this process dies. The signal comes with the
// end of the thread that has started the program, so that thread waits for it.
func startBound(cmd *exec.Cmd, done <-chan struct{}) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
		err := cmd.Start()
		started <- err
		if err == nil {
			<-done
		}
	}()
	return <-started
}

// Launch starts a program on the host; what is left of it at the test's end is told to end.
func (h *Host) Launch(name string, cmd *exec.Cmd) *Process {
	h.tb.Helper()
	return h.start(h.tb, name, cmd)
}

// PID is its process id, as the machine knows it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to it.
func (p *Process) Signal(sig os.Signal) {
	p.tb.Helper()
	require.NoError(p.tb, p.cmd.Process.Signal(sig))
}

// Stop ends it as Ctrl-C does and waits; it must end in an orderly way.
func (p *Process) Stop() {
	p.tb.Helper()
	p.Signal(os.Interrupt)
	p.Await()
	require.True(p.tb, p.cmd.ProcessState.Success(), "%s: %v\n%s", p.Name, p.cmd.ProcessState, p.log)
}

// Kill ends it by SIGKILL, which it cannot notice.
func (p *Process) Kill() {
	p.tb.Helper()
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Await waits until it has ended.
func (p *Process) Await() {
	p.tb.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		require.FailNow(p.tb, p.Name+" does not end", "%s", p.log)
	}
}

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Log is all that it has printed.
func (p *Process) Log() string { return p.log.String() }

// Stopped says whether it is stopped by a signal.
func (p *Process) Stopped() bool {
	status, err := lines(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	return err == nil && slices.Contains(status, "State:\tT (stopped)")
}

// Mute keeps its output from being printed when the test fails: for one of hundreds of lives, which the test
// prints itself where they matter.
func (p *Process) Mute() { p.mute = true }

// State is how it ended; nil while it runs.
func (p *Process) State() *os.ProcessState {
	select {
	case <-p.done:
		return p.cmd.ProcessState
	default:
		return nil
	}
}

func (p *Process) cleanup() {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // a test may have stopped it
		_ = p.cmd.Process.Signal(os.Interrupt)
		select {
		case <-p.done:
		case <-time.After(Patience):
			_ = p.cmd.Process.Kill()
			<-p.done
			assert.Fail(p.tb, p.Name+" had to be killed at the end of the test")
		}
	}
	if p.tb.Failed() && !p.mute {
		Artifact(p.tb, p.Name+".log", []byte(p.Log()))
	}
}
