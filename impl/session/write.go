package session

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/coder/websocket"

	"wrenn/impl/envdclient"
)

// readProgram queues the program's events for the writer until the program ends, the way to it breaks, or
// the viewer proves too slow. Then it says why in s.last and closes the queue.
func (s *session) readProgram(ctx context.Context) {
	s.last = s.relay(ctx)
	close(s.out)
	// From here on the writer may be in the middle of a write that takes for ever.
	s.deadline.run(s.clocks.Farewell, s.last != errTooSlow)
}

func (s *session) relay(ctx context.Context) ending {
	for {
		ev, err := s.program.Next()
		switch {
		case errors.Is(err, io.EOF):
			return ending{code: websocket.StatusNormalClosure, reason: "the program has ended"}
		case errors.Is(err, envdclient.ErrTooSlow):
			return errTooSlow
		case err != nil:
			return ending{code: CloseLost, reason: "the way to the program broke"}
		case ev.Kind == envdclient.Alive:
			continue
		}
		if !s.queue(ctx, messageOf(ev, s.cfg.Terminal)) {
			return errTooSlow
		}
	}
}

// queue waits for room, for as long as the viewer takes at least one message per patience. A short message where none waits is
// sent at once.
func (s *session) queue(ctx context.Context, m message) bool {
	if s.path.Past(m, len(m.data)) {
		return true
	}
	s.path.Queue()
	select {
	case s.out <- m:
		return true
	default:
	}
	late := time.NewTimer(s.clocks.Patience)
	defer late.Stop()
	select {
	case s.out <- m:
		return true
	case <-late.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// write sends what is queued, to its end, and says how the conversation ends. Where the conversation ends
// for another reason than the program's or the viewer's, what is queued is not sent any more.
//
// Once the queue is closed, a viewer has the farewell for each message that is left, or for all of them if it
// was too slow.
func (s *session) write(ctx context.Context) ending {
	defer s.path.Close() // last: it waits for a write under way
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer s.deadline.start(stop)()
	defer context.AfterFunc(ctx, func() {
		if endingOf(context.Cause(ctx)).gone {
			stop()
		} else {
			s.deadline.run(s.clocks.Farewell, false)
		}
	})()
	send := func(m message) error {
		s.cfg.Sent(len(m.data))
		return s.conn.Write(sending, m.kind, m.data)
	}
	s.path.Open(send, s.cfg.Room)
	end := s.writeQueue(ctx, send)
	if end.code != websocket.StatusNormalClosure && !end.gone {
		m := control("error", func(r *reply) { r.Message = end.reason })
		_ = s.conn.Write(sending, m.kind, m.data) // the close frame says the same
	}
	return end
}

func (s *session) writeQueue(ctx context.Context, send func(message) error) ending {
	for {
		var err error
		select {
		case <-ctx.Done():
			return endingOf(context.Cause(ctx))
		case <-s.pongs:
			err = s.path.Beside(func() error { return send(control("pong", nil)) })
		case queued, ok := <-s.out:
			if !ok && ctx.Err() != nil {
				return endingOf(context.Cause(ctx)) // which has broken the way to the program
			}
			if !ok {
				return s.last
			}
			err = s.path.Send(queued)
		}
		if err != nil {
			// The viewer has gone, or has had its time.
			if s.deadline.isOver() {
				return errTooSlow
			}
			return clientGone("has gone")
		}
		s.deadline.progress(s.clocks.Farewell)
	}
}

// deadline ends the writer, once it is running out.
type deadline struct {
	mu         sync.Mutex
	timer      *time.Timer
	left       time.Duration // zero while it does not run
	extendable bool
	over       bool
}

// start lets the deadline call stop once it is over; the returned function disarms it.
func (d *deadline) start(stop func()) (disarm func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.timer = time.AfterFunc(time.Hour, func() {
		d.mu.Lock()
		d.over = true
		d.mu.Unlock()
		stop()
	})
	if d.left == 0 {
		d.timer.Stop()
	} else {
		d.timer.Reset(d.left)
	}
	return func() { d.timer.Stop() }
}

// run lets the deadline run out after left, unless it runs already. An extendable one gives each step of
// progress as much.
func (d *deadline) run(left time.Duration, extendable bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left != 0 {
		return
	}
	d.left, d.extendable = left, extendable
	if d.timer != nil {
		d.timer.Reset(left)
	}
}

// progress puts off a deadline that runs and is extendable.
func (d *deadline) progress(left time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left != 0 && d.extendable {
		d.timer.Reset(left)
	}
}

func (d *deadline) isOver() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}
