package transport

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
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

// Direct is an http.RoundTripper for a proxy's hops. It makes each exchange in the goroutine of its caller,
// where http.Transport has two goroutines with a buffer each per connection, and a third for a dial; for
// small exchanges these cost more than all the rest. Requests and answers pass as they are: no header is
// added for the sake of a client, Content-Length is there if it was, and a redirect is an answer.
type Direct struct {
	// TLSClientConfig is for https; nil means the default.
	TLSClientConfig *tls.Config

	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	idle idleConns
}

// RoundTrip makes one exchange. As with http.Transport the answer may come before the body has been sent, and
// a body of 101 is an io.ReadWriteCloser; of client traces it knows GotConn, Got100Continue and Got1xxResponse.
//
// A kept connection carries only what may be sent again, should the other side have closed it just then: a
// request of an idempotent method without a body.
func (t *Direct) RoundTrip(r *http.Request) (*http.Response, error) {
	target := r.URL.RequestURI()
	if strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return nil, errors.Join(errors.New("the request's target has a control character"), closeBody(r))
	}
	to := endpoint{tls: r.URL.Scheme == "https", addr: r.URL.Host}
	if repeatable(r) {
		if conn := t.idle.take(to); conn != nil {
			res, began, err := t.exchange(r, target, to, conn)
			if err == nil || began || r.Context().Err() != nil {
				return res, err
			}
		}
	}
	conn, err := t.connect(r.Context(), to)
	if err != nil {
		return nil, errors.Join(err, closeBody(r))
	}
	res, _, err := t.exchange(r, target, to, conn)
	return res, err
}

// CloseIdleConnections closes those that are kept; others follow when their exchanges end.
func (t *Direct) CloseIdleConnections() { t.idle.close() }

// repeatable says whether r may be sent twice.
func repeatable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return !hasBody(r)
	}
	return false
}

func (t *Direct) connect(ctx context.Context, to endpoint) (net.Conn, error) {
	addr, port := to.addr, "80"
	if to.tls {
		port = "443"
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), port)
	}
	conn, err := t.dial(ctx, "tcp", addr)
	if err != nil || !to.tls {
		return conn, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.TLSClientConfig != nil {
		cfg = t.TLSClientConfig.Clone()
	}
	cfg.NextProtos = []string{"http/1.1"}
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	secure := tls.Client(conn, cfg)
	ctx, cancel := context.WithTimeout(ctx, dialHost)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS handshake: %w", err), conn.Close())
	}
	return secure, nil
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
	unsent bool          // the body was not asked for, or could not be written; after sent
	keep   bool          // the connection may carry another exchange after this
	idle   *idleConns
	to     endpoint
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
func (t *Direct) exchange(r *http.Request, target string, to endpoint, conn net.Conn) (res *http.Response, began bool, err error) {
	x := &exchange{conn: conn, ctx: r.Context(), head: headLimit{Conn: conn, left: maxAnswerHead}, keep: t.idle.most > 0 && !r.Close, idle: &t.idle, to: to}
	x.r = readers.Get().(*bufio.Reader)
	x.r.Reset(&x.head)
	x.stop = context.AfterFunc(x.ctx, func() { _ = conn.Close() })
	trace := httptrace.ContextClientTrace(x.ctx)
	if trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{Conn: conn})
	}
	if err = x.send(r, target); err == nil {
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

// end gives back what is borrowed, and keeps the connection if the answer came to its proper end and
// everything else allows it.
func (x *exchange) end(proper bool) {
	if x.r == nil {
		return
	}
	forgotten := x.stop()
	if proper && forgotten && x.keep && x.allSent() && x.r.Buffered() == 0 {
		x.idle.put(x.to, x.conn)
	} else {
		_ = x.conn.Close()
	}
	x.r.Reset(nil)
	readers.Put(x.r)
	x.r = nil
}

// allSent says whether the whole request has been sent.
func (x *exchange) allSent() bool {
	if x.sent == nil {
		return true
	}
	select {
	case <-x.sent:
		return x.broken == nil && !x.unsent
	default:
		return false
	}
}

// send writes the request; its body follows in the background.
func (x *exchange) send(r *http.Request, target string) error {
	w := writers.Get().(*bufio.Writer)
	w.Reset(x.conn)
	giveBack := func() {
		w.Reset(nil)
		writers.Put(w)
	}
	writeHead(w, r, target, x.keep)
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
			x.unsent, x.broken = writeBody(w, r)
		} else {
			x.unsent = true
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
		x.keep = x.keep && !res.Close
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

// Buffered returns how many bytes of the body have come already.
func (b *guestBody) Buffered() int {
	if b.x.r == nil {
		return 0
	}
	return b.x.r.Buffered()
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
		b.x.end(errors.Is(err, io.EOF))
	}
	return n, b.err
}

// Close ends the exchange, also in the middle of the body.
func (b *guestBody) Close() error {
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

func writeHead(w *bufio.Writer, r *http.Request, target string, keep bool) {
	line := func(parts ...string) {
		for _, p := range parts {
			_, _ = w.WriteString(p)
		}
		_, _ = w.WriteString("\r\n")
	}
	line(r.Method, " ", target, " HTTP/1.1")
	line("Host: ", headerValue.Replace(cmp.Or(r.Host, r.URL.Host)))
	exclude := notCopied
	if r.Header.Get("User-Agent") == "" { // ReverseProxy's way to say that there is none
		exclude = notCopiedNorAgent
	}
	_ = r.Header.WriteSubset(w, exclude)
	switch {
	case hasBody(r) && r.ContentLength > 0:
		line("Content-Length: ", strconv.FormatInt(r.ContentLength, 10))
	case hasBody(r):
		line("Transfer-Encoding: chunked")
		for name := range r.Trailer {
			line("Trailer: ", headerValue.Replace(name))
		}
	case r.Header.Get("Content-Length") == "0": // the client said so
		line("Content-Length: 0")
	}
	if !keep && r.Header.Get("Upgrade") == "" {
		line("Connection: close")
	}
	line()
}

var headerValue = strings.NewReplacer("\n", " ", "\r", " ")

// writeBody returns whether the body could not be written, which is for the answer to explain, and why it
// could not be read.
func writeBody(w *bufio.Writer, r *http.Request) (unsent bool, broken error) {
	body := &source{Reader: r.Body}
	if r.ContentLength > 0 { // 0 with a body means that it is not known, by net/http's contract
		n, err := io.Copy(w, io.LimitReader(body, r.ContentLength))
		if n < r.ContentLength && body.err == nil && body.ended {
			return true, fmt.Errorf("the request's body ended after %d of %d bytes", n, r.ContentLength)
		}
		return errors.Join(err, w.Flush()) != nil, body.err
	}
	buf := make([]byte, 32<<10)
	chunks := httputil.NewChunkedWriter(w)
	for body.err == nil && !body.ended {
		n, _ := body.Read(buf)
		if n == 0 {
			continue
		}
		if _, err := chunks.Write(buf[:n]); err != nil {
			return true, nil
		}
		if err := w.Flush(); err != nil {
			return true, nil
		}
	}
	if body.err != nil {
		return true, body.err
	}
	_ = chunks.Close()
	_ = r.Trailer.Write(w)
	_, _ = w.WriteString("\r\n")
	return w.Flush() != nil, nil
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
