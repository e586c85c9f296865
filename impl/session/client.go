package session

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"wrenn/impl/envdclient"
)

// defaultShell is what a terminal runs where its client names nothing, with the environment that a shell on
// a terminal wants.
var (
	defaultShell = []string{"/bin/bash", "-i", "-l"}
	terminalEnv  = map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
)

// open reads the first message and does what it says; kill says whether the program ends with this client.
func (s *session) open(ctx context.Context) (kill bool, err error) {
	late := time.AfterFunc(s.clocks.Open, func() {
		_ = s.conn.Close(websocket.StatusPolicyViolation, "the first message did not come in time")
	})
	kind, data, err := s.conn.Read(ctx)
	if !late.Stop() || err != nil {
		return false, clientGone("has said nothing")
	}
	if kind != websocket.MessageText {
		return false, forbidden("the first message must be text, of type start or attach")
	}
	r, err := parse(data)
	if err != nil {
		return false, err
	}
	switch r.Type {
	case "start":
		s.program, err = s.cfg.Guest.Start(ctx, s.programOf(r))
	case "attach":
		s.readOnly = r.ReadOnly
		s.program, err = s.cfg.Guest.Attach(ctx, r.PID, s.cfg.Terminal)
	default:
		return false, forbidden("the first message has type %.20q, it must be start or attach", r.Type)
	}
	switch {
	case errors.Is(err, envdclient.ErrRefused):
		return false, ending{code: CloseRefused, reason: err.Error()}
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "a program could not be reached", "error", err)
		return false, ending{code: CloseLost, reason: "the sandbox does not answer"}
	}
	return r.Kill, nil
}

func (s *session) programOf(r request) envdclient.ProgramRequest {
	p := envdclient.ProgramRequest{
		Cmd: r.Cmd, Args: r.Args, Env: r.Env, Cwd: r.Cwd, User: r.User, Stdin: r.Stdin,
		Terminal: s.cfg.Terminal, Size: envdclient.Size{Cols: r.Cols, Rows: r.Rows},
	}
	if !p.Terminal {
		return p
	}
	if p.Cmd == "" && len(p.Args) == 0 {
		p.Cmd, p.Args = defaultShell[0], defaultShell[1:]
	}
	env := map[string]string{}
	for _, vars := range []map[string]string{terminalEnv, r.Env} {
		for k, v := range vars {
			env[k] = v
		}
	}
	p.Env = env
	return p
}

// readClient takes the client's messages until it leaves or breaks the rules.
func (s *session) readClient(ctx context.Context) error {
	// The end of a Read's context tears the connection; its close frees the reader.
	reading := context.WithoutCancel(ctx)
	for {
		kind, r, err := s.conn.Reader(reading)
		if err != nil {
			return clientGone("has gone")
		}
		data, err := io.ReadAll(&listening{r, &s.heard})
		if err != nil {
			return clientGone("has gone")
		}
		if kind == websocket.MessageBinary {
			err = s.takeInput(ctx, data)
		} else {
			err = s.obey(ctx, data)
		}
		if err != nil {
			return err
		}
	}
}

// listening notes when something was heard: a large message on a slow link is a sign of life long before its
// end, and a probe's answer has to wait behind it.
type listening struct {
	io.Reader
	heard *atomic.Int64 // nanoseconds since the epoch
}

// Read reads and notes.
func (l *listening) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// takeInput passes input on, waiting for the program where it has been sent much.
func (s *session) takeInput(ctx context.Context, data []byte) error {
	switch {
	case s.readOnly:
		return forbidden("this viewer is read-only")
	case s.cfg.Terminal:
	case len(data) == 0 || data[0] != channelStdin:
		return forbidden("a binary message to a program must start with its channel, 0 for standard input")
	default:
		data = data[1:]
	}
	if !s.input.isAwaited() || !s.feeding.Now(data) {
		s.input.add(ctx, data)
	}
	return nil
}

// obey does what a text message says.
func (s *session) obey(ctx context.Context, data []byte) error {
	r, err := parse(data)
	if err != nil {
		return err
	}
	if s.readOnly && r.Type != "ping" {
		return forbidden("this viewer is read-only")
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	switch r.Type {
	case "ping":
		select {
		case s.pongs <- struct{}{}: // past the queue
		default: // one answer for several is enough
		}
		return nil
	case "eof":
		if s.cfg.Terminal {
			return forbidden("a terminal's input has no end: send the byte 0x04")
		}
		s.input.end()
		return nil
	case "resize":
		if !s.cfg.Terminal || r.Cols == 0 || r.Rows == 0 {
			return forbidden("resize is for terminals, and needs cols and rows of 1 or more")
		}
		return s.called(s.program.Resize(ctx, envdclient.Size{Cols: r.Cols, Rows: r.Rows}))
	case "signal":
		sig, ok := map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL}[r.Signal]
		if !ok {
			return forbidden("signal is %.20q, it must be SIGTERM or SIGKILL", r.Signal)
		}
		return s.called(s.program.Signal(ctx, sig))
	}
	return forbidden("a message has type %.20q, it must be resize, signal, eof or ping", r.Type)
}

// called makes of a call's error an ending. That the program has ended is no error: its end is on the way.
func (s *session) called(err error) error {
	if err == nil || errors.Is(err, envdclient.ErrNoInput) {
		return nil
	}
	return ending{code: CloseLost, reason: "the way to the program broke"}
}
