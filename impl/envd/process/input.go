package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrInputClosed says that a process takes no more input: closed, or /dev/null from the start.
var ErrInputClosed = errors.New("input is closed")

// input writes to a process, one writer at a time, in the order of the calls.
type input struct {
	turn   chan struct{} // holds one token; the writer takes it
	f      *os.File
	closed bool // guarded by turn
}

func newInput(f *os.File) *input {
	in := &input{turn: make(chan struct{}, 1), f: f}
	in.turn <- struct{}{}
	return in
}

// write hands all of data to the process, waiting for it to read, until ctx ends. An error says how
// much was taken.
func (in *input) write(ctx context.Context, data []byte) error {
	select {
	case <-in.turn:
	case <-ctx.Done():
		return fmt.Errorf("write input: waiting for an earlier write: %w", ctx.Err())
	}
	defer func() { in.turn <- struct{}{} }()
	if in.closed {
		return fmt.Errorf("write input: %w", ErrInputClosed)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = in.f.SetWriteDeadline(time.Unix(1, 0))
		close(woken)
	})
	n, err := in.f.Write(data)
	if !stop() {
		<-woken
		_ = in.f.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("write input: %d of %d bytes taken: %w", n, len(data), ctx.Err())
	}
	return fmt.Errorf("write input: %d of %d bytes taken: %w: %w", n, len(data), ErrInputClosed, err)
}

// close ends the input after the writes that came before it. A second close is an error.
func (in *input) close(ctx context.Context) error {
	select {
	case <-in.turn:
	case <-ctx.Done():
		return fmt.Errorf("close input: waiting for an earlier write: %w", ctx.Err())
	}
	defer func() { in.turn <- struct{}{} }()
	if in.closed {
		return fmt.Errorf("close input: %w", ErrInputClosed)
	}
	in.closed = true
	if err := in.f.Close(); err != nil {
		return fmt.Errorf("close input: %w", err)
	}
	return nil
}

// abandon ends the input at once, failing a write that waits; for a process that has exited.
func (in *input) abandon() {
	_ = in.f.SetWriteDeadline(time.Unix(1, 0))
	<-in.turn
	if !in.closed {
		in.closed = true
		_ = in.f.Close()
	}
	in.turn <- struct{}{}
}
