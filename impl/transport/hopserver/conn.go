package hopserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// What a connection is doing.
const (
	fresh   = iota // nothing has come yet
	resting        // between requests
	asking         // a request's header has begun
	serving        // a handler is at work
	over           // it is closed, or its handler's
)

// conn is a client's connection.
type conn struct {
	server *Server
	rwc    net.Conn
	remote string
	ctx    context.Context //nolint:containedctx // the connection is what it is the context of
	cancel context.CancelFunc
	r      *bufio.Reader
	w      *bufio.Writer
	left   int // of the header that is being read, in bytes; -1: no bound

	mu      sync.Mutex
	doing   int
	since   int64         // the server's look before which it began
	request *response     // the one that is served
	watcher chan struct{} // closed when the watcher has ended; nil where there is none
	last    bool          // the exchange under way is the last
}

func newConn(s *Server, rwc net.Conn) *conn {
	c := &conn{server: s, rwc: rwc, left: -1, since: s.looks.Load(), w: bufio.NewWriter(rwc)}
	c.r = bufio.NewReader(c)
	if a := rwc.RemoteAddr(); a != nil {
		c.remote = a.String()
	}
	ctx := s.BaseContext
	if ctx == nil {
		ctx = context.Background()
	}
	if s.ConnContext != nil {
		ctx = s.ConnContext(ctx, rwc)
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// errTooLarge is why a header was not read to its end.
var errTooLarge = errors.New("the header is too large")

// Read reads from the client, for the connection's reader.
func (c *conn) Read(p []byte) (int, error) {
	if c.left < 0 {
		return c.rwc.Read(p)
	}
	if c.left == 0 {
		return 0, errTooLarge
	}
	n, err := c.rwc.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// serve serves requests until the connection ends.
func (c *conn) serve() {
	defer c.end()
	for c.begins() && c.exchange() && c.now(resting, nil) {
	}
}

// begins waits for a request's first byte.
func (c *conn) begins() bool {
	_, err := c.r.Peek(1)
	return err == nil && c.now(asking, nil)
}

// now notes what the connection is doing, unless it is to do no more.
func (c *conn) now(doing int, request *response) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doing == over || c.last && doing == resting {
		return false
	}
	c.doing, c.since, c.request = doing, c.server.looks.Load(), request
	return true
}

// exchange serves one request and says whether there may be another.
func (c *conn) exchange() bool {
	r, err := c.readRequest()
	if err != nil {
		c.refuse(err)
		return false
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	w := newResponse(ctx, cancel, c, r)
	r = w.r
	if !c.now(serving, w) {
		return false
	}
	if r.Method == http.MethodOptions && r.RequestURI == "*" { // it asks about this server
		w.header["Content-Length"] = []string{"0"}
	} else {
		c.server.Handler.ServeHTTP(w, r)
	}
	if w.hijacked {
		return false
	}
	return w.finish()
}

// A refusal is an answer to what is no request.
type refusal struct {
	code int
	why  string
}

// Error says why.
func (r refusal) Error() string { return r.why }

// readRequest reads a request's header. It refuses what net/http's server refuses.
func (c *conn) readRequest() (*http.Request, error) {
	c.left = c.server.MaxHeaderBytes
	r, err := http.ReadRequest(c.r)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, refusal{http.StatusRequestHeaderFieldsTooLarge, ""}
	case err != nil:
		return nil, err
	case r.ProtoMajor != 1:
		return nil, refusal{http.StatusHTTPVersionNotSupported, "unsupported protocol version"}
	case r.Host == "" && r.ProtoAtLeast(1, 1):
		return nil, refusal{http.StatusBadRequest, "missing required Host header"}
	case !httpguts.ValidHostHeader(r.Host):
		return nil, refusal{http.StatusBadRequest, "malformed Host header"}
	}
	for name, values := range r.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, refusal{http.StatusBadRequest, "invalid header name"}
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return nil, refusal{http.StatusBadRequest, "invalid header value"}
			}
		}
	}
	if expect := r.Header["Expect"]; expect != nil && !expectsContinue(r) {
		return nil, refusal{http.StatusExpectationFailed, ""}
	}
	c.left = -1
	r.RemoteAddr = c.remote
	return r, nil
}

// expectsContinue says whether r's client waits for "100 Continue" before it sends the body.
func expectsContinue(r *http.Request) bool {
	return httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue")
}

// refuse answers what could not be read as a request, if it was one at all.
func (c *conn) refuse(err error) {
	answer := refusal{code: http.StatusBadRequest}
	var failed *net.OpError
	switch {
	case errors.As(err, &answer):
	case errors.Is(err, io.EOF), errors.As(err, &failed):
		return
	case strings.Contains(err.Error(), "transfer encoding"): // net/http's error has no name
		answer.code = http.StatusNotImplemented
	}
	text := fmt.Sprint(answer.code, " ", http.StatusText(answer.code))
	if answer.why != "" {
		text += ": " + answer.why
	}
	_, _ = fmt.Fprintf(c.w, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		answer.code, http.StatusText(answer.code), len(text), text)
	_ = c.w.Flush()
	c.linger()
}

const (
	// lingerTime and lingerBytes bound what is read of a client that still sends when it has its answer. To close a
	// connection with bytes unread resets it, which can take the answer from the client.
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

func (c *conn) linger() {
	half, ok := c.rwc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.rwc.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.rwc, lingerBytes)
}

// look is the server's look at the connection, the now-th. Whatever it does has taken a look less than it seems, at least.
func (c *conn) look(now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	took := time.Duration(now-c.since-1) * lookEvery
	switch c.doing {
	case resting:
		if took > c.server.IdleTimeout {
			c.closeLocked()
		}
	case fresh, asking:
		if took > c.server.HeaderTimeout {
			c.closeLocked()
		}
	case serving:
		if took > 0 && c.watcher == nil && c.request.body.hasEnded() {
			c.watcher = make(chan struct{})
			go c.watch(c.watcher, c.request.cancel)
		}
	}
}

// watch ends a request whose client has gone. It is the connection's only reader, since the body has ended.
func (c *conn) watch(done chan<- struct{}, gone context.CancelFunc) {
	defer close(done)
	if _, err := c.r.Peek(1); err != nil && !isTimeout(err) {
		gone()
	}
}

func isTimeout(err error) bool {
	var network net.Error
	return errors.As(err, &network) && network.Timeout()
}

// unwatch ends the watch, if there is one, and sees to it that none begins.
func (c *conn) unwatch() {
	c.mu.Lock()
	if c.doing == serving {
		c.doing = asking
	}
	c.request = nil
	c.since = c.server.looks.Load()
	watcher := c.watcher
	c.watcher = nil
	c.mu.Unlock()
	if watcher != nil {
		_ = c.rwc.SetReadDeadline(time.Unix(1, 0))
		<-watcher
		_ = c.rwc.SetReadDeadline(time.Time{})
	}
}

// endIdle closes the connection if it rests, and has it end with the exchange under way if not.
func (c *conn) endIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = true
	if c.doing == fresh || c.doing == resting {
		c.closeLocked()
	}
}

// cut closes the connection, whatever it is doing.
func (c *conn) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked()
}

func (c *conn) closeLocked() {
	if c.doing != over {
		c.doing = over
		c.cancel()
		_ = c.rwc.Close()
	}
}

// release gives the connection to a handler.
func (c *conn) release() bool {
	c.unwatch()
	c.server.remove(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	released := c.doing != over
	c.doing = over
	return released
}

// end ends the connection, also after a handler's panic.
func (c *conn) end() {
	if err := recover(); err != nil && err != http.ErrAbortHandler { //nolint:errorlint // what was given to panic
		c.server.ErrorLog.Printf("panic serving %s: %v\n%s", c.remote, err, debug.Stack())
	}
	c.unwatch()
	c.cut()
	c.cancel()
	c.server.remove(c)
}
