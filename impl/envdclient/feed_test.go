package envdclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"wrenn/impl/transport"
	pb "wrenn/proto/gen/envd/process"
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

// typed is input as who types makes it: a piece goes past the others if it may, else it waits for take. It belongs to one
// goroutine, but for take.
type typed struct {
	feed *Feed
	past int // pieces that did not wait

	mu      sync.Mutex
	changed *sync.Cond
	waiting []byte
	awaited bool
	ended   bool
}

func typing(f *Feed) *typed {
	in := &typed{feed: f}
	in.changed = sync.NewCond(&in.mu)
	return in
}

func (in *typed) take(ctx context.Context) ([]byte, bool) {
	defer context.AfterFunc(ctx, in.changed.Broadcast)()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.awaited = true
	defer func() { in.awaited = false }()
	for len(in.waiting) == 0 {
		if in.ended || ctx.Err() != nil {
			return nil, false
		}
		in.changed.Wait()
	}
	data := in.waiting
	in.waiting = nil
	return data, true
}

func (in *typed) add(data []byte) {
	in.mu.Lock()
	past := in.awaited && len(in.waiting) == 0
	in.mu.Unlock()
	if past && in.feed.Now(data) {
		in.past++
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.waiting = append(in.waiting, data...)
	in.changed.Broadcast()
}

// end says that there is no more, and when Run has returned what it said.
func (in *typed) end(running <-chan error) error {
	in.mu.Lock()
	in.ended = true
	in.changed.Broadcast()
	in.mu.Unlock()
	select {
	case err := <-running:
		return err
	case <-time.After(deadline):
		return errors.New("it waits for ever")
	}
}

func (in *typed) run(ctx context.Context) <-chan error {
	running := make(chan error, 1)
	go func() { running <- in.feed.Run(ctx, in.take) }()
	return running
}

// fed is a program of a daemon that is reached by the transport of the control plane, or by net/http's.
func fed(ctx context.Context, t *testing.T, rt http.RoundTripper, r ProgramRequest) *Program {
	t.Helper()
	port := freePort(t)
	startDaemon(t, port)
	c := newClient(t, port, func(c *Config) {
		if rt != nil {
			c.HTTPClient.Transport = rt
		}
	})
	_, err := c.InitWhenReady(ctx, InitRequest{})
	require.NoError(t, err)
	p, err := c.Start(ctx, r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestG02_FedInputComesInOrder: piece by piece, more than any buffer holds, past those that wait and not, and in a second call
// after the first; when Run returns the program has it, so that the end of its input comes behind it.
func TestG02_FedInputComesInOrder(t *testing.T) {
	for name, rt := range map[string]http.RoundTripper{"direct": transport.NewStreamProxyTransport(), "net/http": nil} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			p := fed(ctx, t, rt, ProgramRequest{Cmd: "cat", Stdin: true})
			read := make(chan []byte, 1)
			go func() {
				out, _ := output(t, p)
				read <- out
			}()
			var want []byte
			for range 2 {
				in := typing(p.NewFeed())
				require.False(t, in.feed.Now([]byte("x")), "there is no call")
				running := in.run(ctx)
				for i := range 3000 {
					piece := fmt.Appendf(nil, "%d ", i)
					switch {
					case i%500 == 499:
						piece = bytes.Repeat(piece, 40_000) // several messages
					case i%7 == 0:
						time.Sleep(100 * time.Microsecond) // until take waits
					}
					want = append(want, piece...)
					in.add(piece)
				}
				require.NoError(t, in.end(running))
				require.False(t, in.feed.Now([]byte("x")), "the call is over")
				if t.Logf("%d of 3000 pieces did not wait", in.past); rt == nil {
					assert.Zero(t, in.past, "nobody knows whether there is room")
				} else {
					assert.Positive(t, in.past)
				}
			}
			require.NoError(t, p.CloseInput(ctx))
			assert.True(t, bytes.Equal(want, <-read))
			_, err := p.Next()
			require.ErrorIs(t, err, io.EOF)
		})
	}
}

// TestG02_NothingLongGoesPastTheQueue, which might have to wait.
func TestG02_NothingLongGoesPastTheQueue(t *testing.T) {
	var sent bytes.Buffer
	f := &Feed{program: &Program{}}
	to := roomy{&sent, true}
	_, err := f.write(&to, []byte("x"))
	require.NoError(t, err)
	assert.True(t, f.Now(make([]byte, shortInput)))
	assert.Greater(t, sent.Len(), shortInput)
	before := sent.Len()
	assert.False(t, f.Now(make([]byte, shortInput+1)))
	to.room = false
	assert.False(t, f.Now([]byte("y")))
	to.room = true
	f.close()
	assert.False(t, f.Now([]byte("y")))
	assert.Equal(t, before, sent.Len())
}

type roomy struct {
	io.Writer
	room bool
}

func (r *roomy) HasRoom() bool { return r.room }

// TestG02_FeedingWhoTakesNothingSaysSo, when it is asked at the latest: of a program that has ended, and of one that
// goes on without its input, to which more is sent than a refusing server reads.
func TestG02_FeedingWhoTakesNothingSaysSo(t *testing.T) {
	for script, size := range map[string]int{"exit 3": 5, "exec 0<&-; echo closed; exec sleep 300": 4 << 20} {
		t.Run(script, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			rt := transport.NewStreamProxyTransport()
			p := fed(ctx, t, rt, ProgramRequest{Cmd: "sh", Args: []string{"-c", script}, Stdin: true})
			ev, err := p.Next()
			require.NoError(t, err)
			require.Contains(t, []EventKind{Ended, Stdout}, ev.Kind)
			feed := p.NewFeed()
			for range 3 { // each begins a call
				in := typing(feed)
				running := in.run(ctx)
				in.add(make([]byte, size))
				if size < 1<<20 { // else the server does not wait for the end
					require.ErrorIs(t, in.end(running), ErrNoInput)
				} else {
					require.ErrorIs(t, <-running, ErrNoInput)
				}
				assert.False(t, in.awaited, "it still takes")
			}
		})
	}
}

// TestG02_AFeedEndsWithItsContext, whether it waits for input or for the program.
func TestG02_AFeedEndsWithItsContext(t *testing.T) {
	for name, size := range map[string]int{"idle": 1, "stuck": 64 << 20} {
		t.Run(name, func(t *testing.T) {
			p := fed(t.Context(), t, transport.NewStreamProxyTransport(), ProgramRequest{Cmd: "sleep", Args: []string{"300"}, Stdin: true})
			ctx, cancel := context.WithCancel(t.Context())
			in := typing(p.NewFeed())
			running := in.run(ctx)
			in.add(make([]byte, size))
			time.Sleep(50 * time.Millisecond)
			cancel()
			select {
			case err := <-running:
				require.ErrorIs(t, err, context.Canceled)
			case <-time.After(deadline):
				require.Fail(t, "it waits for ever")
			}
			assert.False(t, in.feed.Now([]byte("x")))
			assert.False(t, in.awaited, "it still takes")
		})
	}
}

// TestG02_NoInputIsNoCall: who only watches costs nothing.
func TestG02_NoInputIsNoCall(t *testing.T) {
	f := (&Program{}).NewFeed() // which has no client
	require.NoError(t, f.Run(t.Context(), func(context.Context) ([]byte, bool) { return nil, false }))
}

// pieces is an http.RoundTripper that gives each piece of a request's body, as it is read, to who asks.
type pieces chan []byte

func (p pieces) RoundTrip(r *http.Request) (*http.Response, error) {
	defer close(p)
	for buf := make([]byte, 32<<10); ; {
		n, err := r.Body.Read(buf)
		if n > 0 {
			p <- bytes.Clone(buf[:n])
		}
		if err != nil {
			return nil, errors.New("there is nobody")
		}
	}
}

// TestG02_AKeyIsOnePiece where a body is read, too: a chunk of its own for a message's prefix would be another packet.
func TestG02_AKeyIsOnePiece(t *testing.T) {
	sent := make(pieces)
	c, err := New(Config{BaseURL: "http://localhost", HTTPClient: &http.Client{Transport: sent}})
	require.NoError(t, err)
	in := typing((&Program{client: c, PID: 7, terminal: true}).NewFeed())
	running := in.run(t.Context())
	var got [][]byte
	in.add([]byte("a"))
	got = append(got, <-sent, <-sent)
	in.add([]byte("b"))
	got = append(got, <-sent)
	in.add(bytes.Repeat([]byte("c"), inputSize)) // in as many as the reader takes
	whole := make(chan int)
	go func() {
		n := 0
		for piece := range sent {
			n += len(piece)
		}
		whole <- n
	}()
	require.ErrorContains(t, in.end(running), "there is nobody")
	assert.Greater(t, <-whole, inputSize)
	want := []proto.Message{
		&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(7)}}},
		&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: ptyOf([]byte("a"))}}},
		&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: ptyOf([]byte("b"))}}},
	}
	for i, m := range want {
		raw, err := proto.Marshal(m)
		require.NoError(t, err)
		assert.Equal(t, append([]byte{0, 0, 0, 0, byte(len(raw))}, raw...), got[i], "%d", i)
	}
}
