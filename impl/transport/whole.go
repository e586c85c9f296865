package transport

import (
	"net"
	"net/http"
	"sync"
)

// wholeBytes holds a piece of a body (32 KiB) with an answer's header (net/http's buffer has 4096) and what frames a chunk.
const wholeBytes = 37 << 10

var wholes = sync.Pool{New: func() any { return new([wholeBytes]byte) }}

// Listen returns l with connections that a Whole can hold back. Without it a Whole does nothing.
func Listen(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

// Accept waits for the next connection.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		c = &served{TCPConn: tcp}
	}
	return c, err
}

// Whole lets several writes of an answer leave its connection as one. net/http's server writes a chunk of a body as the
// first 4096 bytes, the rest, and the two bytes at its end: without delay that is three packets, each with the kernel's
// whole way through the network behind it and a reader woken at the other end. The copy that one write takes costs a
// tenth of that.
type Whole struct{ conn *served }

// WholeOf is for the connection that r came on; it may be nil, which is one that holds nothing back.
func WholeOf(r *http.Request) *Whole {
	if c, ok := r.Context().Value(connKey{}).(*served); ok {
		return &Whole{c}
	}
	return nil
}

// Begin holds writes back until End, as far as there is room.
func (w *Whole) Begin() {
	if w == nil {
		return
	}
	w.conn.mu.Lock()
	defer w.conn.mu.Unlock()
	w.conn.held = wholes.Get().(*[wholeBytes]byte)
}

// End writes what was held back. If that fails, so does the next write.
func (w *Whole) End() {
	if w == nil {
		return
	}
	w.conn.mu.Lock()
	defer w.conn.mu.Unlock()
	w.conn.release()
}

// Write writes p, or holds it back.
func (c *served) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.failed != nil || c.held == nil {
		err := c.failed
		c.mu.Unlock()
		if err != nil {
			return 0, err
		}
		return c.TCPConn.Write(p)
	}
	defer c.mu.Unlock()
	if len(p) > len(c.held)-c.holds {
		if c.release(); c.failed != nil {
			return 0, c.failed
		}
		return c.TCPConn.Write(p)
	}
	c.holds += copy(c.held[c.holds:], p)
	return len(p), nil
}

// release is for who holds mu.
func (c *served) release() {
	if c.held == nil {
		return
	}
	if c.holds > 0 && c.failed == nil {
		_, c.failed = c.TCPConn.Write(c.held[:c.holds])
	}
	wholes.Put(c.held)
	c.held, c.holds = nil, 0
}
