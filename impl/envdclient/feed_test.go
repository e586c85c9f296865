package envdclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// output reads a program's standard output to its end.
func output(t *testing.T, p *Program) (out []byte, exit Exit) {
	t.Helper()
	for {
		ev, err := p.Next()
		require.NoError(t, err)
		switch ev.Kind {
		case Stdout:
			out = append(out, ev.Data...)
		case Ended:
			return out, ev.Exit
		default:
		}
	}
}

// TestG02_FedInputComesInOrder: piece by piece, more than any buffer holds, and in a second call after a flush; when
// a flush returns the program has it, so that the end of its input comes behind it.
func TestG02_FedInputComesInOrder(t *testing.T) {
	c := ready(t, InitRequest{})
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	p, err := c.Start(ctx, ProgramRequest{Cmd: "cat", Stdin: true})
	require.NoError(t, err)
	defer p.Close()
	feed := p.Feed(ctx)
	require.NoError(t, feed.Flush(), "of nothing")
	var want bytes.Buffer
	for i := range 20 {
		piece := bytes.Repeat([]byte{byte('a' + i)}, 1<<i)
		want.Write(piece)
		require.NoError(t, feed.Input(piece))
		if i == 10 {
			require.NoError(t, feed.Flush())
		}
	}
	read := make(chan []byte)
	go func() {
		out, _ := output(t, p)
		read <- out
	}()
	require.NoError(t, feed.Flush())
	require.NoError(t, p.CloseInput(ctx))
	assert.True(t, bytes.Equal(want.Bytes(), <-read))
	_, err = p.Next()
	require.ErrorIs(t, err, io.EOF)
}

// TestG02_FeedingWhoTakesNothingSaysSo, when it is asked at the latest: of a program that has ended, and of one that
// goes on without its input, to which more is sent than a refusing server reads.
func TestG02_FeedingWhoTakesNothingSaysSo(t *testing.T) {
	for script, size := range map[string]int{"exit 3": 5, "exec 0<&-; echo closed; exec sleep 300": 4 << 20} {
		t.Run(script, func(t *testing.T) {
			c := ready(t, InitRequest{})
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			p, err := c.Start(ctx, ProgramRequest{Cmd: "sh", Args: []string{"-c", script}, Stdin: true})
			require.NoError(t, err)
			defer p.Close()
			ev, err := p.Next()
			require.NoError(t, err)
			require.Contains(t, []EventKind{Ended, Stdout}, ev.Kind)
			if ev.Kind == Stdout {
				defer func() { assert.NoError(t, c.Kill(context.WithoutCancel(ctx), p.PID)) }()
			}
			for range 3 { // each may begin a call
				feed := p.Feed(ctx)
				err = errors.Join(feed.Input(make([]byte, size)), feed.Flush())
				require.ErrorIs(t, err, ErrNoInput)
			}
		})
	}
}

func TestG02_AFeedEndsWithItsContext(t *testing.T) {
	c := ready(t, InitRequest{})
	p, err := c.Start(t.Context(), ProgramRequest{Cmd: "sleep", Args: []string{"300"}, Stdin: true})
	require.NoError(t, err)
	defer p.Close()
	defer func() { assert.NoError(t, c.Kill(context.WithoutCancel(t.Context()), p.PID)) }()
	ctx, cancel := context.WithCancel(t.Context())
	feed := p.Feed(ctx)
	require.NoError(t, feed.Input([]byte("x")))
	ended := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			err = feed.Input(make([]byte, inputSize)) // until nobody takes it
		}
		ended <- err
	}()
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(deadline):
		require.Fail(t, "it waits for ever")
	}
}
