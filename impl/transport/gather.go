package transport

import (
	"net"
	"net/http"
	"sync"
)

// gatherBytes hold a piece of a body (32 KiB) with an answer's header (a server's buffer has 4096) and what frames a chunk.
const gatherBytes = 37 << 10

var gathers = sync.Pool{New: func() any { return new([gatherBytes]byte) }}

// Listen returns l with connections that a Gather can hold back, which without it does nothing, and that p, if it is
// not nil, paces.
func Listen(l net.Listener, p *Pacer) net.Listener { return listener{l, p} }

type listener struct {
	net.Listener
	pacer *Pacer
}

// Accept waits for the next connection.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		s := &served{TCPConn: tcp}
		s.forget = l.pacer.watch(s)
		c = s
	}
	return c, err
}

// Gather lets several writes of an answer leave its connection as one. A server writes a chunk of a body as the
// first 4096 bytes, which is its buffer, the rest, and the two bytes at its end: without delay that is three packets, each with the kernel's
// whole way through the network behind it and a reader woken at the other end. The copy that one write takes costs a
// tenth of that.
type Gather struct{ conn *served }

// GatherOf is for the connection that r came on; it may be nil, which is one that holds nothing back.
func GatherOf(r *http.Request) *Gather {
	if c, ok := r.Context().Value(connKey{}).(*served); ok {
		return &Gather{c}
	}
	return nil
}

// Begin holds writes back until End, as far as there is room.
func (g *Gather) Begin() {
	if g == nil {
		return
	}
	g.conn.mu.Lock()
	defer g.conn.mu.Unlock()
	g.conn.held = gathers.Get().(*[gatherBytes]byte)
}

// End writes what was held back. If that fails, so does the next write.
func (g *Gather) End() {
	if g == nil {
		return
	}
	g.conn.mu.Lock()
	defer g.conn.mu.Unlock()
	g.conn.release()
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
		return c.send(p)
	}
	defer c.mu.Unlock()
	if len(p) > len(c.held)-c.holds {
		if c.release(); c.failed != nil {
			return 0, c.failed
		}
		return c.send(p)
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
		_, c.failed = c.send(c.held[:c.holds])
	}
	gathers.Put(c.held)
	c.held, c.holds = nil, 0
}
