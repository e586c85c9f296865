package hopserver

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// body is a request's. A nil body is that of a request without one.
type body struct {
	src   io.Reader
	read  *http.Request // as it was read: its trailer is set when the body ends
	r     *http.Request // as the handler has it
	ended atomic.Bool   // it has been read to its end

	mu      sync.Mutex // guards the reading, which may be another goroutine's than the handler's
	writing sync.Mutex // guards what follows
	expects bool       // the client waits for "100 Continue"
	asked   bool       // it has been told
	final   bool       // the answer has begun
	w       *bufio.Writer
}

// Read reads from the body. The first time it tells a client that waits for it to go on.
func (b *body) Read(p []byte) (int, error) {
	b.proceed()
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.src.Read(p)
	if errors.Is(err, io.EOF) && !b.ended.Load() {
		b.r.Trailer = b.read.Trailer
		b.ended.Store(true)
	}
	return n, err
}

// Close does nothing: what is left is for the server to judge.
func (b *body) Close() error { return nil }

// proceed tells a client that waits for it to go on, once.
func (b *body) proceed() {
	if b == nil {
		return
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	if b.expects && !b.asked && !b.final {
		b.asked = true
		_, _ = b.w.WriteString("HTTP/1.1 100 " + http.StatusText(http.StatusContinue) + "\r\n\r\n")
		_ = b.w.Flush()
	}
}

// undisturbed runs f while "100 Continue" is not being sent.
func (b *body) undisturbed(f func()) {
	if b != nil {
		b.writing.Lock()
		defer b.writing.Unlock()
	}
	f()
}

// answered notes that the final answer begins and says whether it is known if the body comes.
func (b *body) answered() bool {
	if b == nil {
		return true
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	b.final = true
	return !b.expects || b.asked
}

func (b *body) hasEnded() bool { return b == nil || b.ended.Load() }

// mostDrained is how much of an unread body is read, in bytes, rather than the connection ended.
const mostDrained = 256 << 10

// drain reads what is left and says whether that was all.
func (b *body) drain() bool {
	if b.hasEnded() {
		return true
	}
	_, err := io.CopyN(io.Discard, b, mostDrained)
	return errors.Is(err, io.EOF)
}
