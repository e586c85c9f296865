package envdclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "wrenn/proto/gen/envd/process"
)

// ProgramRequest says what to run in the guest.
type ProgramRequest struct {
	Cmd  string // looked up in the guest's PATH; nothing passes through a shell
	Args []string
	Env  map[string]string
	Cwd  string // empty: the user's home, or the daemon's default
	User string // empty: the daemon's default
	// Terminal runs it on a terminal of Size; without, it has pipes.
	Terminal bool
	Size     Size // zero: 80x24
	// Stdin keeps the pipe of its standard input open; without, it reads from /dev/null. A terminal has none.
	Stdin bool
}

// EventKind tells what an Event carries.
type EventKind int

// The kinds of an Event. Alive says that the program is quiet and the way to it open.
const (
	Alive EventKind = iota
	Stdout
	Stderr
	Terminal
	Ended
)

// Event is a piece of output or, last, the program's end.
type Event struct {
	Kind EventKind
	Data []byte // of Stdout, Stderr and Terminal
	Exit Exit   // of Ended
}

// Errors of a Program that its caller decides on.
var (
	// ErrTooSlow: the daemon has cut this reader off, since it did not take its output.
	ErrTooSlow = errors.New("the reader was too slow")
	// ErrRefused: the request was at fault; the daemon's words say how.
	ErrRefused = errors.New("refused by the guest")
	// ErrNoInput: the program takes no more input: it has ended, or its standard input is closed.
	ErrNoInput = errors.New("the program takes no input")
)

// Program is a program in the guest with its events as they come, for those who pass them on. Next belongs
// to one goroutine at a time; the rest may be called from any.
type Program struct {
	// PID is its process id in the guest.
	PID uint32

	client   *Client
	cancel   context.CancelFunc
	terminal bool
	next     func() (*pb.ProcessEvent, error)
	close    func() error
}

// Start starts a program. Its events end with ctx or Close, the program does not, unless by ctx's deadline.
func (c *Client) Start(ctx context.Context, r ProgramRequest) (*Program, error) {
	m := &pb.StartRequest{Process: configOf(r.Cmd, r.Args, r.Env, r.Cwd)}
	if r.Terminal {
		m.Pty = sizeOf(r.Size)
	} else {
		m.Stdin = proto.Bool(r.Stdin)
	}
	ctx, cancel := context.WithCancel(ctx)
	st, err := c.procs.Start(ctx, as(r.User, m))
	if err != nil {
		cancel()
		return nil, programError("start program", err)
	}
	return c.program(cancel, r.Terminal, func() (*pb.ProcessEvent, error) {
		if !st.Receive() {
			return nil, lost(st.Err())
		}
		return st.Msg().GetEvent(), nil
	}, st.Close)
}

// Attach joins a program that was started before, even one that ended in the last 30 s; terminal says what
// it runs on. A terminal's latest output (at most 1 MiB) comes first.
func (c *Client) Attach(ctx context.Context, pid uint32, terminal bool) (*Program, error) {
	ctx, cancel := context.WithCancel(ctx)
	st, err := c.procs.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: byPID(pid)}))
	if err != nil {
		cancel()
		return nil, programError("attach to program", err)
	}
	return c.program(cancel, terminal, func() (*pb.ProcessEvent, error) {
		if !st.Receive() {
			return nil, lost(st.Err())
		}
		return st.Msg().GetEvent(), nil
	}, st.Close)
}

// program waits for the start event.
func (c *Client) program(cancel context.CancelFunc, terminal bool, next func() (*pb.ProcessEvent, error), closeStream func() error) (*Program, error) {
	p := &Program{client: c, cancel: cancel, terminal: terminal, next: next, close: closeStream}
	ev, err := next()
	if err == nil && ev.GetStart() == nil {
		err = fmt.Errorf("first event is not start: %w", ErrLost)
	}
	if err != nil {
		_ = p.Close()
		return nil, programError("start program", err)
	}
	p.PID = ev.GetStart().GetPid()
	return p, nil
}

// Next returns the next event; io.EOF after Ended. Errors: ErrTooSlow, or that the way to the guest broke.
func (p *Program) Next() (Event, error) {
	ev, err := p.next()
	if err != nil {
		return Event{}, programError("read program", err)
	}
	switch {
	case ev.GetEnd() != nil:
		p.next = func() (*pb.ProcessEvent, error) { return nil, io.EOF }
		return Event{Kind: Ended, Exit: exitOf(ev.GetEnd())}, nil
	case ev.GetData() == nil:
		return Event{Kind: Alive}, nil
	}
	switch d := ev.GetData().GetOutput().(type) {
	case *pb.ProcessEvent_DataEvent_Stdout:
		return Event{Kind: Stdout, Data: d.Stdout}, nil
	case *pb.ProcessEvent_DataEvent_Stderr:
		return Event{Kind: Stderr, Data: d.Stderr}, nil
	case *pb.ProcessEvent_DataEvent_Pty:
		return Event{Kind: Terminal, Data: d.Pty}, nil
	}
	return Event{Kind: Alive}, nil
}

// Input hands data to the program and returns when it has taken all of it. Calls one after the other keep
// their order. Errors: ErrNoInput, or that the way to the guest broke.
func (p *Program) Input(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), inputSize)
		in := stdinOf(data[:n])
		if p.terminal {
			in = ptyOf(data[:n])
		}
		if err := p.client.sendInput(ctx, p.PID, in); err != nil {
			return inputError("write to program", err)
		}
		data = data[n:]
	}
	return nil
}

// CloseInput ends the program's standard input. Errors as those of Input.
func (p *Program) CloseInput(ctx context.Context) error {
	_, err := p.client.procs.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: byPID(p.PID)}))
	if err != nil {
		return inputError("close the input of program", err)
	}
	return nil
}

// Resize sets its terminal's size.
func (p *Program) Resize(ctx context.Context, size Size) error {
	_, err := p.client.procs.Update(ctx, connect.NewRequest(&pb.UpdateRequest{Process: byPID(p.PID), Pty: sizeOf(size)}))
	if err != nil {
		return inputError("resize the terminal of program", err)
	}
	return nil
}

// Signal sends SIGTERM or SIGKILL, the two that the daemon knows, to the program's process group.
func (p *Program) Signal(ctx context.Context, sig syscall.Signal) error {
	wire := pb.Signal_SIGNAL_SIGKILL
	switch sig {
	case syscall.SIGKILL:
	case syscall.SIGTERM:
		wire = pb.Signal_SIGNAL_SIGTERM
	default:
		return fmt.Errorf("signal program %d: %w: only SIGTERM and SIGKILL can be sent", p.PID, ErrRefused)
	}
	_, err := p.client.procs.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: byPID(p.PID), Signal: wire}))
	if err != nil {
		return inputError("signal program", err)
	}
	return nil
}

// Close ends the events; the program goes on. It may be called more than once.
func (p *Program) Close() error {
	p.cancel()
	return p.close()
}

func programError(what string, err error) error {
	switch connect.CodeOf(err) {
	case connect.CodeResourceExhausted:
		return fmt.Errorf("%s: %w: %w", what, ErrTooSlow, err)
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return fmt.Errorf("%s: %w: %s", what, ErrRefused, messageOf(err))
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

func inputError(what string, err error) error {
	switch connect.CodeOf(err) {
	case connect.CodeNotFound, connect.CodeFailedPrecondition:
		return fmt.Errorf("%s: %w: %s", what, ErrNoInput, messageOf(err))
	default:
		return programError(what, err)
	}
}

// messageOf is what the daemon said, without the code.
func messageOf(err error) string {
	var coded *connect.Error
	if errors.As(err, &coded) {
		return coded.Message()
	}
	return err.Error()
}
