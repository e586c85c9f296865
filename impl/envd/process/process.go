// Package process runs programs in the guest: with pipes or on a terminal, as any of its users, each in
// a session and process group of its own, with any number of readers that come and go.
package process

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

	"wrenn/impl/envd/account"
)

var (
	// ErrNotFound says that no such process runs (or, for Attach, ran lately).
	ErrNotFound = errors.New("process not found")
	// ErrNoTerminal says that a process has pipes where a terminal is needed.
	ErrNoTerminal = errors.New("process has no terminal")
	// ErrTerminal says that a process has a terminal where pipes are needed.
	ErrTerminal = errors.New("process has a terminal")
)

// Spec says what to run. Cmd is looked up in the PATH of Env; nothing passes through a shell.
type Spec struct {
	Cmd      string
	Args     []string // without the program's name
	Env      []string // KEY=value, the whole environment
	Dir      string   // absolute
	User     account.User
	Tag      *string
	Terminal *Size     // nil: pipes
	Stdin    bool      // pipes only: false means /dev/null
	Deadline time.Time // when the process group is killed; zero for never

	// Requested is what the client asked for, handed back by List.
	Requested any
}

// Process is a running or lately ended process.
type Process struct {
	PID  int
	Spec Spec

	cmd     *exec.Cmd
	fan     *fanout
	sources []*source
	in      *input   // nil: /dev/null
	master  *os.File // nil: pipes
	ended   chan struct{}

	mu     sync.Mutex
	reaped bool // the pid may belong to another from here on
}

// start runs spec. Its reader is subscribed before the first byte can be read. The parent's ends of
// pipes and terminal are closed on error.
func start(spec Spec, patience time.Duration, oom *oomScore, group Group) (*Process, *Subscription, error) {
	path, err := lookPath(spec)
	if err != nil {
		return nil, nil, err
	}
	p := &Process{Spec: spec, ended: make(chan struct{})}
	p.cmd = &exec.Cmd{
		Path: path, Args: append([]string{spec.Cmd}, spec.Args...), Env: spec.Env, Dir: spec.Dir,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	group.Join(p.cmd.SysProcAttr)
	if os.Geteuid() == 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: spec.User.UID, Gid: spec.User.GID, Groups: spec.User.Groups}
	} else if int(spec.User.UID) != os.Geteuid() {
		return nil, nil, fmt.Errorf("start process as %q: the daemon is not root: %w", spec.User.Name, os.ErrPermission)
	}
	var theirs, ours []*os.File
	if spec.Terminal != nil {
		theirs, ours, err = p.attachTerminal(patience)
	} else {
		theirs, ours, err = p.attachPipes(patience)
	}
	if err == nil {
		err = oom.start(p.cmd)
	}
	for _, f := range theirs {
		_ = f.Close()
	}
	if err != nil {
		for _, f := range ours {
			_ = f.Close()
		}
		return nil, nil, fmt.Errorf("start process %q: %w", spec.Cmd, err)
	}
	p.PID = p.cmd.Process.Pid
	sub := p.fan.subscribe()
	for _, s := range p.sources {
		go s.run()
	}
	go p.supervise()
	return p, sub, nil
}

func (p *Process) attachTerminal(patience time.Duration) (theirs, ours []*os.File, err error) {
	master, slave, err := openTerminal(*p.Spec.Terminal)
	if err != nil {
		return nil, nil, err
	}
	theirs, ours = []*os.File{slave}, []*os.File{master}
	if err := p.Spec.User.Own(slave.Name()); err != nil {
		return theirs, ours, err
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr.Setctty = true // of descriptor 0, the slave
	p.fan = newFanout(patience, &ring{})
	p.master, p.in = master, newInput(master)
	p.sources = []*source{newSource(master, Terminal, p.fan)}
	return theirs, ours, nil
}

func (p *Process) attachPipes(patience time.Duration) (theirs, ours []*os.File, err error) {
	p.fan = newFanout(patience, nil)
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	outR, outW := pipe()
	errR, errW := pipe()
	var inR, inW *os.File
	if p.Spec.Stdin {
		inR, inW = pipe()
	}
	for _, f := range []*os.File{outW, errW, inR} {
		if f != nil {
			theirs = append(theirs, f)
		}
	}
	for _, f := range []*os.File{outR, errR, inW} {
		if f != nil {
			ours = append(ours, f)
		}
	}
	if err != nil {
		return theirs, ours, fmt.Errorf("make pipes: %w", err)
	}
	if inR != nil {
		p.cmd.Stdin, p.in = inR, newInput(inW)
	}
	p.cmd.Stdout, p.cmd.Stderr = outW, errW
	// A program may open them again by name (/dev/stdout), which only their owner can.
	for _, f := range theirs {
		if err := p.Spec.User.OwnFile(f); err != nil {
			return theirs, ours, err
		}
	}
	p.sources = []*source{newSource(outR, Stdout, p.fan), newSource(errR, Stderr, p.fan)}
	return theirs, ours, nil
}

// supervise waits for the exit, then for the output that came before it, and reports the end.
func (p *Process) supervise() {
	if d := p.Spec.Deadline; !d.IsZero() {
		t := time.AfterFunc(time.Until(d), func() { _ = p.signal(unix.SIGKILL) })
		defer t.Stop()
	}
	waitExited(p.PID)
	p.mu.Lock()
	p.reaped = true
	err := p.cmd.Wait()
	p.mu.Unlock()
	if p.in != nil && p.master == nil {
		p.in.abandon()
	}
	for _, s := range p.sources {
		s.processExited()
	}
	for _, s := range p.sources {
		<-s.drained
	}
	p.fan.finish(exitOf(p.cmd.ProcessState, err))
	close(p.ended)
}

// waitExited returns when the process has exited, leaving it a zombie, so that nobody signals a pid
// that has gone to another.
func waitExited(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

func exitOf(state *os.ProcessState, err error) Exit {
	if state == nil {
		return Exit{Code: -1, Status: err.Error()}
	}
	return Exit{Code: state.ExitCode(), Exited: state.Exited(), Status: state.String()}
}

// signal sends sig to the whole process group.
func (p *Process) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return fmt.Errorf("signal process %d: %w", p.PID, ErrNotFound)
	}
	if err := unix.Kill(-p.PID, sig); err != nil {
		return fmt.Errorf("signal process group %d: %w", p.PID, err)
	}
	return nil
}

// Write hands data to the terminal or, with terminal false, to the standard input, in the order of the
// calls, waiting until the process has taken it or ctx ends.
func (p *Process) Write(ctx context.Context, data []byte, terminal bool) error {
	switch {
	case terminal && p.master == nil:
		return fmt.Errorf("write to process %d: %w", p.PID, ErrNoTerminal)
	case !terminal && p.master != nil:
		return fmt.Errorf("write to process %d: %w", p.PID, ErrTerminal)
	case p.in == nil:
		return fmt.Errorf("write to process %d: %w", p.PID, ErrInputClosed)
	}
	return p.in.write(ctx, data)
}

// CloseStdin ends the standard input of a process without a terminal.
func (p *Process) CloseStdin(ctx context.Context) error {
	switch {
	case p.master != nil:
		return fmt.Errorf("close standard input of process %d: %w (send 0x04 instead)", p.PID, ErrTerminal)
	case p.in == nil:
		return fmt.Errorf("close standard input of process %d: %w", p.PID, ErrInputClosed)
	}
	return p.in.close(ctx)
}

// Resize sets the size of the process's terminal.
func (p *Process) Resize(s Size) error {
	if p.master == nil {
		return fmt.Errorf("resize process %d: %w", p.PID, ErrNoTerminal)
	}
	if err := resize(p.master, s); err != nil {
		return fmt.Errorf("resize process %d: %w", p.PID, err)
	}
	return nil
}
