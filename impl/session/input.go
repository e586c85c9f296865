package session

import (
	"context"
	"errors"
	"sync"
	"time"

	"wrenn/impl/envdclient"
)

// input is what the client has sent and is not on its way to the program. While one piece is being sent, what comes
// meanwhile is joined.
type input struct {
	limit int

	mu      sync.Mutex
	waiting []byte
	ended   bool // by the client
	closed  bool // by the conversation's end
	full    bool // add waits for room
	awaited bool // take waits for input
	changed chan struct{}
}

func newInput(limit int) *input { return &input{limit: limit, changed: make(chan struct{})} }

// change wakes whoever waits; mu is held.
func (in *input) change() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// add appends data and waits while more than the limit is there.
func (in *input) add(ctx context.Context, data []byte) {
	in.mu.Lock()
	if in.ended || in.closed {
		in.mu.Unlock()
		return // after its own end; the protocol has no use for it
	}
	in.waiting = append(in.waiting, data...)
	in.change()
	for len(in.waiting) > in.limit && !in.closed {
		in.full = true
		if !in.wait(ctx) {
			break
		}
	}
	in.full = false
	in.mu.Unlock()
}

// wait waits for a change, or reports that ctx has ended. mu is held before and after.
func (in *input) wait(ctx context.Context) bool {
	changed := in.changed
	in.mu.Unlock()
	defer in.mu.Lock()
	select {
	case <-changed:
		return true
	case <-ctx.Done():
		return false
	}
}

// take waits for input and takes all of it; ok is false when there will be no more.
func (in *input) take(ctx context.Context) (data []byte, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.awaited = true
	defer func() { in.awaited = false }()
	for len(in.waiting) == 0 {
		if in.ended || in.closed || !in.wait(ctx) {
			return nil, false
		}
	}
	data, in.waiting = in.waiting, nil
	in.change()
	return data, true
}

// isAwaited says that all earlier input is on its way.
func (in *input) isAwaited() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.awaited && len(in.waiting) == 0 && !in.ended && !in.closed
}

func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ended = true
	in.change()
}

func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.change()
}

// isFull says that the client is not being read.
func (in *input) isFull() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.full
}

// isEnded says whether the client has said that there is no more input; over, that nothing will come whoever wanted it so.
func (in *input) isEnded() (ended, over bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.ended && !in.closed, in.ended || in.closed
}

// feed passes input on to the program, in order. A program that takes no more has ended or will; what was
// meant for it is dropped, as by a pipe.
func (s *session) feed(ctx context.Context) error {
	for over := false; !over && ctx.Err() == nil; {
		err := s.feeding.Run(ctx, s.input.take)
		var ended bool
		if ended, over = s.input.isEnded(); ended && err == nil {
			err = s.program.CloseInput(ctx)
		}
		if err != nil && !errors.Is(err, envdclient.ErrNoInput) {
			// Where ctx has ended already, its reason is the one that counts.
			return ending{code: CloseLost, reason: "the way to the program broke, and input with it"}
		}
	}
	return nil
}

// probe asks a connection that is quiet whether it is alive. One that does not answer ends.
func (s *session) probe(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.clocks.Ping):
		}
		if s.isBusy() {
			continue
		}
		answer, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.clocks.Ping)
		err := s.conn.Ping(answer)
		cancel()
		if err != nil && ctx.Err() == nil && !s.isBusy() {
			return clientGone("does not answer")
		}
	}
}

// isBusy says that the connection needs no probe: it is written to (and other bounds hold), it is not read
// because the program takes no input, or the client was heard lately.
func (s *session) isBusy() bool {
	heard := time.Since(time.Unix(0, s.heard.Load())) < s.clocks.Ping
	return heard || len(s.out) > 0 || s.input.isFull()
}
