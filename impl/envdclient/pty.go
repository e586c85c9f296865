package envdclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect"

	pb "wrenn/proto/gen/envd/process"
)

// Size is a terminal's size in character cells, each 1 to 65535.
type Size struct {
	Cols, Rows uint16
}

// PTYRequest says what to run on a terminal in the guest.
type PTYRequest struct {
	Cmd  string
	Args []string
	Env  map[string]string // TERM comes from here
	Cwd  string            // empty: the user's home, or the daemon's default
	User string            // empty: the daemon's default
	Size Size              // zero: 80x24
}

// Session is a terminal in the guest. Read belongs to one goroutine at a time; the rest may be called
// from any. Output that nobody reads for long ends the session's stream, not the program.
type Session struct {
	// PID is the program's process id in the guest.
	PID uint32

	client *Client
	ctx    context.Context //nolint:containedctx // the stream's life, which io.Reader and io.Writer cannot carry
	cancel context.CancelFunc
	next   func() (*pb.ProcessEvent, error)
	close  func() error
	rest   []byte

	writing sync.Mutex

	mu   sync.Mutex
	exit Exit
	err  error
	over chan struct{}
}

// PTY starts a program on a terminal. The session ends with ctx or Close, the program by itself, by
// Kill, or by ctx's deadline (its cancellation only detaches).
func (c *Client) PTY(ctx context.Context, r PTYRequest) (*Session, error) {
	ctx, cancel := context.WithCancel(ctx)
	st, err := c.procs.Start(ctx, as(r.User, ptyStart(r)))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start terminal: %w", err)
	}
	return c.session(ctx, cancel, func() (*pb.ProcessEvent, error) {
		if !st.Receive() {
			return nil, lost(st.Err())
		}
		return st.Msg().GetEvent(), nil
	}, st.Close)
}

// AttachPTY joins a terminal that was started before, even one that ended in the last 30 s. Its latest
// output (at most 1 MiB) comes first.
func (c *Client) AttachPTY(ctx context.Context, pid uint32) (*Session, error) {
	ctx, cancel := context.WithCancel(ctx)
	st, err := c.procs.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: byPID(pid)}))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("attach to terminal %d: %w", pid, err)
	}
	return c.session(ctx, cancel, func() (*pb.ProcessEvent, error) {
		if !st.Receive() {
			return nil, lost(st.Err())
		}
		return st.Msg().GetEvent(), nil
	}, st.Close)
}

// session waits for the start event.
func (c *Client) session(ctx context.Context, cancel context.CancelFunc, next func() (*pb.ProcessEvent, error), closeStream func() error) (*Session, error) {
	s := &Session{client: c, ctx: ctx, cancel: cancel, next: next, close: closeStream, over: make(chan struct{})}
	ev, err := next()
	if err == nil && ev.GetStart() == nil {
		err = fmt.Errorf("first event is not start: %w", ErrLost)
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("start terminal: %w", err)
	}
	s.PID = ev.GetStart().GetPid()
	return s, nil
}

// Read returns output as it comes; io.EOF after the program's end, another error when the stream broke.
func (s *Session) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if err := s.ended(); err != nil {
			return 0, err
		}
		ev, err := s.next()
		switch {
		case err != nil:
			s.finish(Exit{}, fmt.Errorf("read terminal: %w", err))
		case ev.GetEnd() != nil:
			s.finish(exitOf(ev.GetEnd()), io.EOF)
		case ev.GetData() != nil:
			s.rest = ev.GetData().GetPty()
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write sends input; calls are sent one after the other, in order, and each returns when the terminal
// has taken it.
func (s *Session) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for done := 0; done < len(p); {
		n := min(len(p)-done, inputSize)
		if err := s.client.sendInput(s.ctx, s.PID, ptyOf(p[done:done+n])); err != nil {
			return done, fmt.Errorf("write to terminal: %w", err)
		}
		done += n
	}
	return len(p), nil
}

// Resize sets the terminal's size.
func (s *Session) Resize(ctx context.Context, size Size) error {
	_, err := s.client.procs.Update(ctx, connect.NewRequest(&pb.UpdateRequest{Process: byPID(s.PID), Pty: sizeOf(size)}))
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Kill ends the program and its process group.
func (s *Session) Kill(ctx context.Context) error { return s.client.Kill(ctx, s.PID) }

// Wait returns how the program ended, once Read has come to the end, or what broke the stream.
func (s *Session) Wait() (Exit, error) {
	<-s.over
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, io.EOF) {
		return s.exit, nil
	}
	return Exit{}, s.err
}

// Close detaches from the terminal; the program goes on.
func (s *Session) Close() error {
	s.finish(Exit{}, fmt.Errorf("read terminal: %w", io.ErrClosedPipe))
	s.cancel()
	return s.close()
}

func (s *Session) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// finish keeps the first end.
func (s *Session) finish(exit Exit, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.exit, s.err = exit, err
		close(s.over)
	}
}
