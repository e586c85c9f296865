package envdclient

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "wrenn/proto/gen/envd/process"
	"wrenn/proto/gen/envd/process/processconnect"
)

// Feed hands input to a program by one call that stays open, so that a key costs a write on each hop and not a
// request with its answer.
type Feed struct {
	program *Program

	mu sync.Mutex // who writes holds it
	to bodyWriter // where the call's body goes; nil while there is none
}

// bodyWriter is what a transport gives a body to write itself to.
type bodyWriter interface {
	io.Writer
	HasRoom() bool
}

// NewFeed returns a Feed of p.
func (p *Program) NewFeed() *Feed { return &Feed{program: p} }

// Run passes on what take gives, in order, until take has no more, and returns when the program has taken all of it. Its call
// begins with the first input.
//
// take waits for input until its context ends. It is called by one goroutine at a time, not Run's own but for the first
// input, and never after Run has returned. Once what lies between here and the program is full, some MiB, take is not called.
// Errors: ErrNoInput, or that the way to the guest broke; what take gave last may be lost then. Run may be called again.
func (f *Feed) Run(ctx context.Context, take func(ctx context.Context) (data []byte, ok bool)) error {
	data, ok := take(ctx)
	if !ok {
		return nil
	}
	taking, stop := context.WithCancel(ctx)
	defer stop()
	b := &feedBody{feed: f, ctx: ctx, take: func() ([]byte, bool) { return take(taking) }, input: data}
	b.add(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{
		Start: &pb.StreamInputRequest_StartEvent{Process: byPID(f.program.PID)},
	}})
	client := f.program.client
	call := connect.NewClient[pb.StreamInputRequest, pb.StreamInputResponse](
		feedCall{client.http, b, stop}, client.base+processconnect.ProcessStreamInputProcedure, connect.WithReadMaxBytes(maxMessage))
	_, err := call.CallClientStream(ctx).CloseAndReceive()
	stop()
	b.end()
	if err != nil {
		return inputError("write to program", err)
	}
	return nil
}

// Now passes data on at once and says so, or says that this is not possible without waiting. It is for short input, and for
// who gives take its input, while take waits for some.
func (f *Feed) Now(data []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.to == nil || len(data) > shortInput || !f.to.HasRoom() {
		return false
	}
	_, err := f.to.Write(appendMessage(nil, f.messageOf(data)))
	return err == nil // the call hears of it, too
}

// write writes p to w, to which Now may write from then on.
func (f *Feed) write(w io.Writer, p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to, _ = w.(bodyWriter)
	return w.Write(p)
}

func (f *Feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = nil
}

// shortInput is the most that Now takes, in bytes: with all that is around it it is short of what a writer with room takes at
// once (1 KiB, see impl/internal/shortcut). A key has up to ten.
const shortInput = 512

func (f *Feed) messageOf(data []byte) *pb.StreamInputRequest {
	in := stdinOf(data)
	if f.program.terminal {
		in = ptyOf(data)
	}
	return &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: in}}}
}

// feedCall sends a body of ours in place of Connect's, which is a pipe: each message would come out of it in two pieces, and be
// handed from one goroutine to another and back for each of them.
type feedCall struct {
	doer
	body *feedBody
	stop func()
}

// Do implements connect.HTTPClient.
func (c feedCall) Do(r *http.Request) (*http.Response, error) {
	_ = r.Body.Close() // into which nothing is written
	r.Body = c.body
	defer c.stop() // once there is an answer no more is taken
	return c.doer.Do(r)
}

// feedBody is what a call sends: messages of the Connect protocol, made as they are wanted.
type feedBody struct {
	feed *Feed
	ctx  context.Context //nolint:containedctx // that of the call whose body it is
	take func() ([]byte, bool)

	mu      sync.Mutex // who makes messages holds it, also while it waits for input
	over    bool
	input   []byte // has been taken and is in no message
	message []byte
	pending []byte // what has not been read of it
}

// Read returns what there is of one message.
func (b *feedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.fill(); err != nil {
		return 0, err
	}
	n := copy(p, b.pending)
	b.pending = b.pending[n:]
	return n, nil
}

// WriteTo writes all messages to w, and lets Now do so meanwhile.
func (b *feedBody) WriteTo(w io.Writer) (written int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.feed.close()
	for {
		if err := b.fill(); errors.Is(err, io.EOF) {
			return written, nil
		} else if err != nil {
			return written, err
		}
		n, err := b.feed.write(w, b.pending)
		if written += int64(n); err != nil {
			return written, err
		}
		b.pending = nil
	}
}

// fill waits for input where nothing is pending, and makes a message of it.
func (b *feedBody) fill() error {
	if len(b.pending) > 0 {
		return nil
	}
	if len(b.input) == 0 {
		ok := !b.over
		if ok {
			b.input, ok = b.take()
		}
		switch {
		case b.ctx.Err() != nil:
			return context.Cause(b.ctx) // which does not look like the input's end
		case !ok:
			return io.EOF
		}
	}
	n := min(len(b.input), inputSize)
	b.message = b.message[:0]
	b.add(b.feed.messageOf(b.input[:n]))
	b.input = b.input[n:]
	return nil
}

// add adds m to what is pending.
func (b *feedBody) add(m *pb.StreamInputRequest) {
	b.message = appendMessage(b.message, m)
	b.pending = b.message
}

// prefixBytes is what Connect puts before each message of a stream: a byte of flags and the message's length.
const prefixBytes = 5

func appendMessage(to []byte, m proto.Message) []byte {
	begin := len(to)
	to, _ = proto.MarshalOptions{}.MarshalAppend(append(to, make([]byte, prefixBytes)...), m) // of bytes and a number
	binary.BigEndian.PutUint32(to[begin+1:], uint32(len(to)-begin-prefixBytes))
	return to
}

// end waits for the end of a take under way, whose context has ended; there is no other.
func (b *feedBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

// Close implements io.Closer.
func (b *feedBody) Close() error { return nil }
