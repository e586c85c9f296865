// Package session serves one WebSocket's conversation with one program in a sandbox: its terminal, or its
// standard streams.
//
// The client speaks first, with a text message that says what to start or what to attach to. From then on
// binary messages are bytes, as they are (what they mean, UTF-8 or not, is between the two ends), and text
// messages are JSON that controls: see message.go. The program's end is the last message, and then the
// connection is closed.
//
// Each viewer has a queue of 256 messages. A viewer that lets it stay full is cut off, alone, and told; the
// program and the other viewers go on, since the daemon in the guest keeps a queue per viewer, too. Input is
// passed on in order and never dropped: where the program does not take it, the client's socket is not read.
//
// github.com/coder/websocket serves the protocol: it takes a context for each read and write, allows
// concurrent writers, and has no dependencies; gorilla/websocket has none of the three.
package session

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"wrenn/impl/envdclient"
	"wrenn/impl/internal/shortcut"
)

// Protocol is the name of this protocol, which a client may ask for as the WebSocket's subprotocol (and must
// where it asks for any, as browsers do that send their key that way).
const Protocol = "wrenn.v1"

// Close codes of the conversation, in the range that is for applications. 1000 comes after a program's end,
// 1001 when the control plane ends, 1008 for what the protocol forbids, 1009 for a message over 1 MiB.
const (
	// CloseLost: the way to the program broke; it may go on, and a new connection may attach to it.
	CloseLost = websocket.StatusCode(4000)
	// CloseTooSlow: the viewer did not read fast enough. It may attach again.
	CloseTooSlow = websocket.StatusCode(4001)
	// CloseRefused: the guest refused the start, or knows no such process.
	CloseRefused = websocket.StatusCode(4002)
)

const (
	// queueLen is how many messages wait for a viewer (SPEC T05); each carries at most 32 KiB.
	queueLen = 256
	// maxMessage bounds a message from the client: an environment fits, and input comes in pieces.
	maxMessage = 1 << 20
	// maxInput bounds the input that is read ahead of the program, in bytes.
	maxInput = 1 << 20
	// callTimeout bounds the short calls: a resize, a signal.
	callTimeout = 10 * time.Second
)

// Clocks are the times of a conversation, each with its default where zero.
type Clocks struct {
	// Open is how long the client may take for its first message; 10 s, as for a request's header.
	Open time.Duration
	// Ping is the pause after which a quiet connection is probed, and how long the answer may take; 30 s,
	// which is under the idle time of common middleboxes (60 s).
	Ping time.Duration
	// Patience is how long a viewer's queue may stay full. 1 s for a terminal, whose viewers may attach
	// again and get what they missed, 5 s for a program with pipes: the values of the daemon in the guest.
	Patience time.Duration
	// Farewell is how long a viewer that was cut off has to read what is queued and the reason; 5 s.
	Farewell time.Duration
}

func (c Clocks) complete(terminal bool) Clocks {
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&c.Open, 10*time.Second)
	or(&c.Ping, 30*time.Second)
	or(&c.Farewell, 5*time.Second)
	if terminal {
		or(&c.Patience, time.Second)
	}
	or(&c.Patience, 5*time.Second)
	return c
}

// Config is what Serve needs.
type Config struct {
	// Guest is the daemon of the sandbox.
	Guest *envdclient.Client
	// Terminal: the program runs on a terminal. Without, it has pipes.
	Terminal bool
	Clocks   Clocks
	// Sent is told of each message of the program's, before it is sent, how many bytes it has, by one goroutine at a time; may be nil.
	Sent func(n int)
	// Room says whether the client's connection takes something short at once (transport.RoomOf); nil is never.
	Room   func() bool
	Logger *slog.Logger
}

// Serve answers r with a WebSocket and holds the conversation until it is over or ctx ends. A request that is
// no WebSocket's is answered with an error. The caller has checked who asks.
func Serve(ctx context.Context, w http.ResponseWriter, r *http.Request, cfg Config) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{Protocol},
		// Pages of any origin may connect: the key is sent by the page, never by the browser itself.
		InsecureSkipVerify: true,
	})
	if err != nil {
		return // it has been answered
	}
	conn.SetReadLimit(maxMessage)
	if cfg.Sent == nil {
		cfg.Sent = func(int) {}
	}
	s := &session{
		cfg: cfg, clocks: cfg.Clocks.complete(cfg.Terminal), conn: conn,
		out: make(chan message, queueLen), pongs: make(chan struct{}, 1), input: newInput(maxInput),
	}
	end := s.run(ctx)
	cfg.Logger.DebugContext(ctx, "session ends", "code", int(end.code), "reason", end.reason)
	_ = conn.Close(end.code, end.reason) // for one that never began; the client may have gone
	_ = conn.CloseNow()
}

// session is one conversation.
type session struct {
	cfg    Config
	clocks Clocks
	conn   *websocket.Conn
	// out is what the viewer has not got yet; readProgram closes it, once it has set last.
	out      chan message
	path     shortcut.Path[message] // through out, or past it
	last     ending
	pongs    chan struct{}
	deadline deadline
	input    *input
	heard    atomic.Int64 // when the client last sent something, in nanoseconds since the epoch

	program  *envdclient.Program
	feeding  *envdclient.Feed
	readOnly bool
}

// message is one for the client: binary, or text where data is JSON.
type message struct {
	kind websocket.MessageType
	data []byte
}

// ending is how a conversation ends, as a close frame says it.
type ending struct {
	code   websocket.StatusCode
	reason string
	gone   bool // nobody is there to be told
}

var (
	errTooSlow = ending{code: CloseTooSlow, reason: "the output was not read fast enough; attach again"}
	errLeaving = ending{code: websocket.StatusGoingAway, reason: "Wrenn's control plane ends; attach again when it is back"}
)

func clientGone(how string) ending {
	return ending{code: websocket.StatusGoingAway, reason: "the client " + how, gone: true}
}

// Error makes an ending a cause.
func (e ending) Error() string { return e.reason }

// endingOf finds the ending in err; what is none is the end of the context that Serve was given.
func endingOf(err error) ending {
	var e ending
	if errors.As(err, &e) {
		return e
	}
	return errLeaving
}

func (s *session) run(ctx context.Context) ending {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	kill, err := s.open(ctx)
	if err != nil {
		return s.refused(ctx, endingOf(err))
	}
	defer s.program.Close() //nolint:errcheck // its stream ends one way or another
	if err := s.send(ctx, control("started", func(c *reply) { c.PID = s.program.PID })); err != nil {
		return clientGone("has gone")
	}
	s.feeding = s.program.NewFeed()
	var parts sync.WaitGroup
	parts.Go(func() { s.readProgram(ctx) })
	for _, part := range []func(context.Context) error{s.readClient, s.feed, s.probe} {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				cancel(err)
			}
		})
	}
	end := s.write(ctx)
	cancel(end)
	s.input.close()
	if kill && end.code != websocket.StatusNormalClosure {
		s.kill(ctx)
	}
	_ = s.program.Close()
	_ = s.conn.Close(end.code, end.reason) // which frees whoever still reads the connection
	parts.Wait()
	return end
}

// refused tells the client why nothing was started.
func (s *session) refused(ctx context.Context, end ending) ending {
	if end.gone {
		return end
	}
	_ = s.send(ctx, control("error", func(c *reply) { c.Message = end.reason }))
	end.reason = short(end.reason)
	return end
}

// kill ends the program of a client that wanted it so.
func (s *session) kill(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := s.program.Signal(ctx, syscall.SIGKILL); err != nil && !errors.Is(err, envdclient.ErrNoInput) {
		s.cfg.Logger.WarnContext(ctx, "a program outlives its client", "pid", s.program.PID, "error", err)
	}
}

// send writes one message past the queue, before there is one. The end of ctx does not stop it: it would tear the
// connection, and with it what the client is to be told of the end.
func (s *session) send(ctx context.Context, m message) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.clocks.Farewell)
	defer cancel()
	return s.conn.Write(ctx, m.kind, m.data)
}
