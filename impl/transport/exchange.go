package transport

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// exchange is one request and its answer on a connection of its own.
type exchange struct {
	conn   net.Conn
	ctx    context.Context //nolint:containedctx // the exchange is what it is the context of
	head   headLimit
	r      *bufio.Reader
	stop   func() bool   // forgets ctx
	go100  chan bool     // true: the guest wants the body, false: it has answered without
	sent   chan struct{} // closed when the body has been sent, or has failed to be
	broken atomic.Value  // why the body could not be read, an error; set before the connection is closed for it
	unsent bool          // the body did not go out whole; after sent
	keep   bool          // the connection may carry another exchange after this
	settle bool          // see Direct.settles
	idle   *idleConns
	to     endpoint

	ending sync.Mutex
	over   bool // the connection is another's, or closed
	cut    bool // it was closed under a reader, and may carry nothing else
}

// headLimit bounds what is read until an answer's header has been.
type headLimit struct {
	net.Conn
	left int // -1: no bound
}

// Read reads from the connection.
func (l *headLimit) Read(p []byte) (int, error) {
	if l.left < 0 {
		return l.Conn.Read(p)
	}
	if l.left == 0 {
		return 0, errors.New("the answer's header is too large")
	}
	n, err := l.Conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

var (
	readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriter(nil) }}
)

// exchange sends r on conn. began says whether anything has been answered.
func (t *Direct) exchange(r *http.Request, target string, to endpoint, conn net.Conn, trace *httptrace.ClientTrace) (res *http.Response, began bool, err error) {
	x := &exchange{conn: conn, ctx: r.Context(), head: headLimit{Conn: conn, left: maxAnswerHead}, keep: t.idle.most > 0 && !r.Close && t.reuses(r), settle: t.settles, idle: &t.idle, to: to}
	x.r = readers.Get().(*bufio.Reader)
	x.r.Reset(&x.head)
	x.stop = context.AfterFunc(x.ctx, func() { _ = conn.Close() })
	if trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{Conn: conn})
	}
	if err = x.send(r, target, t.whole && isShort(r)); err == nil {
		res, err = x.receive(r, trace)
	}
	if err != nil {
		began = x.head.left < maxAnswerHead
		return nil, began, x.fail(err)
	}
	return res, true, nil
}

// fail ends the exchange and says why: the cause rather than what it led to.
func (x *exchange) fail(err error) error {
	x.end(false)
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	if broken, ok := x.broken.Load().(error); ok {
		return broken
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// end gives back what is borrowed, and keeps the connection if the answer came to its proper end and
// everything else allows it. It is for who reads.
func (x *exchange) end(proper bool) {
	if proper && x.settle && x.sent != nil {
		select {
		case <-x.sent: // the answer may come before it is known that the last byte has been written
		case <-x.ctx.Done():
		}
	}
	x.ending.Lock()
	defer x.ending.Unlock()
	if x.over {
		return
	}
	x.over = true
	forgotten := x.stop()
	if proper && !x.cut && forgotten && x.keep && x.allSent() && x.r.Buffered() == 0 {
		x.idle.put(x.to, x.conn)
	} else {
		_ = x.conn.Close()
	}
	x.r.Reset(nil)
	readers.Put(x.r)
	x.r = nil
}

// cutOff ends a read under way, unless it has come to its end meanwhile and the connection is another's.
func (x *exchange) cutOff() {
	x.ending.Lock()
	defer x.ending.Unlock()
	if !x.over {
		x.cut = true
		_ = x.conn.Close()
	}
}

// allSent says whether the whole request has been sent.
func (x *exchange) allSent() bool {
	if x.sent == nil {
		return true
	}
	select {
	case <-x.sent:
		return !x.unsent
	default:
		return false
	}
}

// send writes the request. Its body goes with it if it is to go whole, else it follows in the background.
func (x *exchange) send(r *http.Request, target string, whole bool) error {
	w := writers.Get().(*bufio.Writer)
	w.Reset(x.conn)
	giveBack := func() {
		w.Reset(nil)
		writers.Put(w)
	}
	writeHead(w, r, target, x.keep)
	if whole {
		defer giveBack()
		return sendWhole(w, r)
	}
	// A guest that refuses an upload answers and closes, so a failed write says nothing of the answer.
	_ = w.Flush()
	if !hasBody(r) {
		giveBack()
		return closeBody(r)
	}
	x.sent = make(chan struct{})
	if strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		x.go100 = make(chan bool, 1)
	}
	go func() {
		defer close(x.sent)
		defer giveBack()
		var broken error
		x.unsent = true
		if x.mayGo() {
			x.unsent, broken = writeBody(w, x.conn, r)
		}
		if err := errors.Join(broken, closeBody(r)); err != nil {
			x.unsent = true
			x.broken.Store(err)
			_ = x.conn.Close() // or the guest would wait for the rest
		}
	}()
	return nil
}

// mayGo waits for "100 Continue" where it was asked for, but not for ever.
func (x *exchange) mayGo() bool {
	if x.go100 == nil {
		return true
	}
	timer := time.NewTimer(expectContinue)
	defer timer.Stop()
	select {
	case ok := <-x.go100:
		return ok
	case <-timer.C:
		return true
	case <-x.ctx.Done():
		return false
	}
}

// receive reads the answer's header, and interim answers before it.
func (x *exchange) receive(r *http.Request, trace *httptrace.ClientTrace) (*http.Response, error) {
	for {
		res, err := http.ReadResponse(x.r, r)
		if err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusContinue {
			if trace != nil && trace.Got100Continue != nil {
				trace.Got100Continue() // first: a body may be made of what it tells
			}
			x.proceed(true)
		}
		if interim := res.StatusCode < 200 && res.StatusCode != http.StatusSwitchingProtocols; interim {
			if trace != nil && trace.Got1xxResponse != nil {
				if err := trace.Got1xxResponse(res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
					return nil, err
				}
			}
			continue
		}
		x.proceed(false)
		x.head.left = -1
		x.keep = x.keep && !res.Close
		if res.StatusCode == http.StatusSwitchingProtocols {
			x.stop() // from here on the connection is the caller's
			if x.to.behind != "" {
				endByReset(x.conn, false)
			}
			res.Body = &upgraded{x: x, Conn: x.conn}
		} else {
			res.Body = &guestBody{x: x, body: res.Body}
		}
		return res, nil
	}
}

func (x *exchange) proceed(wanted bool) {
	if x.go100 != nil {
		select {
		case x.go100 <- wanted:
		default: // it has been told
		}
	}
}

// guestBody is an answer's body. Its end is the connection's. As with net/http's it may be closed while it is read.
type guestBody struct {
	x *exchange

	reading sync.Mutex // guards what follows
	body    io.Reader
	err     error
}

// Buffered returns how many bytes of the body have come already.
func (b *guestBody) Buffered() int {
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.x.r == nil {
		return 0
	}
	return b.x.r.Buffered()
}

// Read reads from the guest.
func (b *guestBody) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.body.Read(p)
	if err != nil {
		if b.err = err; !errors.Is(err, io.EOF) && b.x.ctx.Err() != nil {
			b.err = context.Cause(b.x.ctx)
		}
		b.x.end(errors.Is(err, io.EOF))
	}
	return n, b.err
}

// Close ends the exchange, also in the middle of the body.
func (b *guestBody) Close() error {
	if !b.reading.TryLock() {
		b.x.cutOff()
		b.reading.Lock()
	}
	defer b.reading.Unlock()
	if b.err == nil {
		b.err = http.ErrBodyReadAfterClose
	}
	b.x.end(b.body == http.NoBody) // which nobody needs to read
	return nil
}

// upgraded is the connection after 101, which does not hang on the request any longer.
type upgraded struct {
	net.Conn
	x *exchange
}

// Read returns what came behind the header, and then what comes.
func (u *upgraded) Read(p []byte) (int, error) {
	if u.x == nil {
		return u.Conn.Read(p)
	}
	if n := u.x.r.Buffered(); n > 0 {
		return u.x.r.Read(p[:min(n, len(p))])
	}
	u.x.r.Reset(nil)
	readers.Put(u.x.r)
	u.x = nil
	return u.Conn.Read(p)
}
