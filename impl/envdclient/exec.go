package envdclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	pb "wrenn/proto/gen/envd/process"
)

const (
	// inputSize is the most that one request of input carries: a Linux pipe's 64 KiB.
	inputSize = 64 << 10
	// farewell bounds the calls that clean up after a caller whose context has ended.
	farewell = 5 * time.Second
)

// ExecRequest says what to run in the guest.
type ExecRequest struct {
	Cmd  string   // looked up in the guest's PATH; nothing passes through a shell
	Args []string // without the program's name
	Env  map[string]string
	Cwd  string // empty: the user's home, or the daemon's default
	User string // empty: the daemon's default
	// Stdin is sent to the program; nil means /dev/null. A Read that blocks does not hold Exec up.
	Stdin io.Reader
	// Stdout and Stderr take the output, from one goroutine; nil throws it away.
	Stdout, Stderr io.Writer
}

// Exit is how a program in the guest ended.
type Exit struct {
	Code   int    // -1 when a signal ended it
	Status string // "exit status 3", "signal: killed"
}

// ErrLost says that the stream of a program ended without its exit: the guest or the way to it is gone.
var ErrLost = errors.New("the stream ended before the program did")

// Exec runs a program to its end. When ctx ends, the program and its process group are killed; so they
// are when the output cannot be written.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := c.procs.Start(ctx, as(r.User, execStart(r)))
	if err != nil {
		return Exit{}, fmt.Errorf("exec %q: %w", r.Cmd, err)
	}
	defer func() { _ = events.Close() }()
	pid := uint32(0)
	exit, err := func() (Exit, error) {
		for events.Receive() {
			switch ev := events.Msg().GetEvent().GetEvent().(type) {
			case *pb.ProcessEvent_Start:
				pid = ev.Start.GetPid()
				if r.Stdin != nil {
					go c.feed(ctx, pid, r.Stdin)
				}
			case *pb.ProcessEvent_Data:
				if err := writeTo(r, ev.Data); err != nil {
					return Exit{}, err
				}
			case *pb.ProcessEvent_End:
				return exitOf(ev.End), nil
			}
		}
		return Exit{}, lost(events.Err())
	}()
	if err != nil {
		c.killAfter(ctx, pid)
		return Exit{}, fmt.Errorf("exec %q: %w", r.Cmd, err)
	}
	return exit, nil
}

func lost(err error) error {
	if err == nil {
		return ErrLost
	}
	return err
}

func writeTo(r ExecRequest, d *pb.ProcessEvent_DataEvent) error {
	w, data := r.Stdout, d.GetStdout()
	if _, ok := d.GetOutput().(*pb.ProcessEvent_DataEvent_Stderr); ok {
		w, data = r.Stderr, d.GetStderr()
	}
	if w == nil {
		return nil
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("write its output: %w", err)
	}
	return nil
}

// feed sends in to the process, one request after the other, and closes its standard input at the end.
// Its errors mean that the process takes no more, which is for the process to complain of.
func (c *Client) feed(ctx context.Context, pid uint32, in io.Reader) {
	buf := make([]byte, inputSize)
	for {
		n, err := in.Read(buf)
		if n > 0 && c.sendInput(ctx, pid, stdinOf(buf[:n])) != nil {
			return
		}
		if err != nil {
			_, _ = c.procs.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: byPID(pid)}))
			return
		}
	}
}

func (c *Client) sendInput(ctx context.Context, pid uint32, in *pb.ProcessInput) error {
	_, err := c.procs.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: byPID(pid), Input: in}))
	return err
}

// killAfter kills a process whose caller is going away.
func (c *Client) killAfter(ctx context.Context, pid uint32) {
	if pid == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	_ = c.Kill(ctx, pid)
}

// Kill ends the process group of a process that this daemon started. Its error has the code not_found
// where there is none.
func (c *Client) Kill(ctx context.Context, pid uint32) error {
	_, err := c.procs.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: byPID(pid), Signal: pb.Signal_SIGNAL_SIGKILL}))
	if err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}
