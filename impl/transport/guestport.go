package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxAnswerHead bounds the headers of an answer, interim ones included; it is http.Transport's own bound.
const maxAnswerHead = 10 << 20

// GuestPort is the transport from an agent's port proxy to one sandbox's ports. Connections are used once:
// a user's server may close an idle one at any moment (Node does after 5 s) and a request just sent on it
// could not be repeated; and an address is reused by the next sandbox, which must never meet its
// predecessor's connection. A dial over a veth costs well under a millisecond.
//
// It is no http.Transport, since that is made for connections that are kept: two goroutines with a buffer
// each, and a third for the dial, for every exchange, which cost more than the exchange itself.
type GuestPort struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// NewGuestPortTransport returns a GuestPort that connects by dial (DialGuest, or something around it).
func NewGuestPortTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *GuestPort {
	return &GuestPort{dial: dial}
}

// exchange is one request and its answer on a connection of its own.
type exchange struct {
	conn   net.Conn
	ctx    context.Context //nolint:containedctx // the exchange is what it is the context of
	head   headLimit
	r      *bufio.Reader
	stop   func() bool   // forgets ctx
	go100  chan bool     // true: the guest wants the body, false: it has answered without
	sent   chan struct{} // closed when the body has been sent, or has failed to be
	broken error         // why the body could not be read; after sent
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

// RoundTrip makes one exchange. As with http.Transport the answer may come before the body has been sent, and
// a body of 101 is an io.ReadWriteCloser; of client traces it knows GotConn, Got100Continue and Got1xxResponse.
func (t *GuestPort) RoundTrip(r *http.Request) (*http.Response, error) {
	target := r.URL.RequestURI()
	if strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return nil, errors.Join(errors.New("the request's target has a control character"), closeBody(r))
	}
	conn, err := t.dial(r.Context(), "tcp", r.URL.Host)
	if err != nil {
		return nil, errors.Join(err, closeBody(r))
	}
	x := &exchange{conn: conn, ctx: r.Context(), head: headLimit{Conn: conn, left: maxAnswerHead}}
	x.r = readers.Get().(*bufio.Reader)
	x.r.Reset(&x.head)
	x.stop = context.AfterFunc(x.ctx, func() { _ = conn.Close() })
	trace := httptrace.ContextClientTrace(x.ctx)
	if trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{Conn: conn})
	}
	err = x.send(r, target)
	var res *http.Response
	if err == nil {
		res, err = x.receive(r, trace)
	}
	if err != nil {
		return nil, x.fail(err)
	}
	return res, nil
}

// fail ends the exchange and says why: the cause rather than what it led to.
func (x *exchange) fail(err error) error {
	x.end()
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	if x.sent != nil {
		<-x.sent // the connection is closed: it ends, or waits for the client, whose end ctx is
		if x.broken != nil {
			return x.broken
		}
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// end closes the connection and gives back what is borrowed.
func (x *exchange) end() {
	if x.r == nil {
		return
	}
	x.stop()
	_ = x.conn.Close()
	x.r.Reset(nil)
	readers.Put(x.r)
	x.r = nil
}

// send writes the request; its body follows in the background.
func (x *exchange) send(r *http.Request, target string) error {
	w := writers.Get().(*bufio.Writer)
	w.Reset(x.conn)
	giveBack := func() {
		w.Reset(nil)
		writers.Put(w)
	}
	writeHead(w, r, target)
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
		if x.mayGo() {
			x.broken = writeBody(w, r)
		}
		if err := closeBody(r); x.broken == nil {
			x.broken = err
		}
		if x.broken != nil {
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
		res, err := http.ReadResponse(x.r, r) //nolint:bodyclose // closed by its reader, or has none
		if err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusContinue {
			x.proceed(true)
			if trace != nil && trace.Got100Continue != nil {
				trace.Got100Continue()
			}
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
		if res.StatusCode == http.StatusSwitchingProtocols {
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

// guestBody is an answer's body. Its end is the connection's.
type guestBody struct {
	x    *exchange
	body io.Reader
	err  error
}

// Read reads from the guest.
func (b *guestBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.body.Read(p)
	if err != nil {
		if b.err = err; !errors.Is(err, io.EOF) && b.x.ctx.Err() != nil {
			b.err = context.Cause(b.x.ctx)
		}
		b.x.end()
	}
	return n, b.err
}

// Close ends the exchange, also in the middle of the body.
func (b *guestBody) Close() error {
	if b.err == nil {
		b.err = http.ErrBodyReadAfterClose
	}
	b.x.end()
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
	u.x.stop()
	if n := u.x.r.Buffered(); n > 0 {
		return u.x.r.Read(p[:min(n, len(p))])
	}
	u.x.r.Reset(nil)
	readers.Put(u.x.r)
	u.x = nil
	return u.Conn.Read(p)
}

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

func closeBody(r *http.Request) error {
	if r.Body == nil {
		return nil
	}
	return r.Body.Close()
}

// notCopied are headers that writeHead writes itself.
var notCopied = map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Trailer": true}

var notCopiedNorAgent = map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Trailer": true, "User-Agent": true}

func writeHead(w *bufio.Writer, r *http.Request, target string) {
	line := func(parts ...string) {
		for _, p := range parts {
			_, _ = w.WriteString(p)
		}
		_, _ = w.WriteString("\r\n")
	}
	line(r.Method, " ", target, " HTTP/1.1")
	line("Host: ", headerValue.Replace(r.Host))
	exclude := notCopied
	if r.Header.Get("User-Agent") == "" { // ReverseProxy's way to say that there is none
		exclude = notCopiedNorAgent
	}
	_ = r.Header.WriteSubset(w, exclude)
	switch {
	case hasBody(r) && r.ContentLength >= 0:
		line("Content-Length: ", strconv.FormatInt(r.ContentLength, 10))
	case hasBody(r):
		line("Transfer-Encoding: chunked")
		for name := range r.Trailer {
			line("Trailer: ", headerValue.Replace(name))
		}
	case r.Header.Get("Content-Length") == "0": // the client said so
		line("Content-Length: 0")
	}
	if r.Header.Get("Upgrade") == "" {
		line("Connection: close")
	}
	line()
}

var headerValue = strings.NewReplacer("\n", " ", "\r", " ")

// writeBody returns why the body could not be read; that it could not be written is for the answer to explain.
func writeBody(w *bufio.Writer, r *http.Request) error {
	body := &source{Reader: r.Body}
	if r.ContentLength >= 0 {
		n, _ := io.Copy(w, io.LimitReader(body, r.ContentLength))
		if n < r.ContentLength && body.err == nil && body.ended {
			return fmt.Errorf("the request's body ended after %d of %d bytes", n, r.ContentLength)
		}
		_ = w.Flush()
		return body.err
	}
	buf := make([]byte, 32<<10)
	chunks := httputil.NewChunkedWriter(w)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := chunks.Write(buf[:n]); werr != nil {
				return nil
			}
			_ = w.Flush()
		}
		if err != nil {
			break
		}
	}
	if body.err == nil {
		_ = chunks.Close()
		_ = r.Trailer.Write(w)
		_, _ = w.WriteString("\r\n")
		_ = w.Flush()
	}
	return body.err
}

// source tells errors of reading from errors of writing.
type source struct {
	io.Reader
	err   error
	ended bool
}

// Read reads the body.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		s.ended = true
	} else if err != nil {
		s.err = err
	}
	return n, err
}
