package portproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wrenn/impl/transport"
)

// errEvicted is why a sandbox's connections end when it is evicted.
var errEvicted = errors.New("sandbox was evicted from the proxy")

const (
	// dialAttempts and dialPause: a program that has just been told to listen may need a moment, so a
	// refused dial is tried again after 100 ms and after 200 ms more. A port that stays closed is
	// therefore answered after 0.3 s, within the second that clients are promised.
	dialAttempts = 3
	dialPause    = 100 * time.Millisecond
)

// guest is the proxy's view of one life of one sandbox at one address: its connections, which end
// together, and the transports that keep them. Nothing of it survives evict.
type guest struct {
	addr      netip.Addr
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	transport *transport.Direct // to users' ports
	streams   *transport.Direct // to the daemon's

	inFlight atomic.Int64 // exchanges under way, and pipes

	mu      sync.Mutex
	evicted bool
	conns   map[*guestConn]struct{}
}

// guestConn is a connection to a guest. It embeds the TCPConn itself so that CloseWrite, by which half-closed
// tunnels work, and the kernel's splice stay reachable.
type guestConn struct {
	*net.TCPConn
	guest *guest
	cut   func() // what is done when it is evicted, beside its close; may be nil
}

// onEvict has cut called when the connection is evicted, unless it has been.
func (c *guestConn) onEvict(cut func()) {
	c.guest.mu.Lock()
	defer c.guest.mu.Unlock()
	if !c.guest.evicted {
		c.cut = cut
	}
}

// Close closes the connection and forgets it.
func (c *guestConn) Close() error {
	c.guest.mu.Lock()
	delete(c.guest.conns, c)
	c.guest.mu.Unlock()
	return c.TCPConn.Close()
}

// dialRetrying connects to one of the guest's ports. Only a dial that was refused is repeated: nothing of
// the request has been sent then, and a dial that timed out has waited long enough.
func (g *guest) dialRetrying(ctx context.Context, network, addr string) (net.Conn, error) {
	for attempt := 1; ; attempt++ {
		conn, err := g.dial(ctx, network, addr)
		if err == nil {
			return g.track(conn)
		}
		if attempt == dialAttempts || isTimeout(err) || !isDialError(err) || g.isEvicted() {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Duration(attempt) * dialPause):
		}
	}
}

func (g *guest) track(conn net.Conn) (net.Conn, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connection to a guest is a %T, not TCP", conn), conn.Close())
	}
	c := &guestConn{TCPConn: tcp, guest: g}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.evicted {
		return nil, errors.Join(errEvicted, tcp.Close())
	}
	g.conns[c] = struct{}{}
	return c, nil
}

// begin counts one more exchange under way, unless that would be more than most.
func (g *guest) begin(most int) bool {
	if g.inFlight.Add(1) > int64(most) {
		g.end()
		return false
	}
	return true
}

func (g *guest) end() { g.inFlight.Add(-1) }

func (g *guest) isEvicted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.evicted
}

// evict resets every living connection of the sandbox (no lingering: its peer may be gone) and refuses
// new ones. It may be called twice.
func (g *guest) evict() {
	g.mu.Lock()
	g.evicted = true
	conns := g.conns
	g.conns = nil
	g.mu.Unlock()
	g.transport.CloseIdleConnections()
	for c := range conns {
		_ = c.SetLinger(0)
		_ = c.TCPConn.Close()
		if c.cut != nil {
			c.cut()
		}
	}
	g.streams.CloseIdleConnections()
}
