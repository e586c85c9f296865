package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn/impl/internal/shortcut"
)

const (
	// userTimeout is how long what was sent may stay unacknowledged (or, once the peer's window has closed,
	// unwanted) before a connection is given up. Keepalive probes do not run while data is under way, and
	// the kernel's own retransmissions take a quarter of an hour. A minute is what the probes take to find
	// a quiet peer gone. It is not for BULK connections, nor for a proxy's clients: a person may pause a
	// download for longer, which closes the window.
	userTimeout = 60_000 // milliseconds

	// notSentLowat bounds what the kernel queues behind what it has already sent, as in envd's server: an
	// interrupt's echo waits for that much of a flood at each hop and not for the megabytes to which a
	// socket's buffer grows. It is for the writers of terminals' output. For one bulk exchange per
	// connection there is nothing to overtake: it would cost wake-ups and gain nothing.
	notSentLowat = 64 << 10
)

// option is an integer socket option.
type option struct{ level, name, value int }

var (
	giveUp  = option{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout}
	nimbly  = option{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat}
	streams = append([]option{giveUp, nimbly}, marks(true)...)
)

// control sets options on a socket that is about to connect.
func control(options []option) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error { return set(c, options) }
}

// set sets options. A mark that cannot be set is not missed: the connection only is no sooner than others.
func set(c syscall.RawConn, options []option) error {
	var inner error
	err := c.Control(func(fd uintptr) {
		for _, o := range options {
			if err := unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil && o.level == unix.IPPROTO_TCP {
				inner = err
			}
		}
	})
	if err != nil {
		return err
	}
	return inner
}

// connKey is where a request's context has its connection.
type connKey struct{}

// served is a server's connection.
type served struct {
	*net.TCPConn
	marked atomic.Bool
	forget func()       // takes it from its Pacer
	piece  atomic.Int64 // the most bytes that the kernel may send at once; 0 is as many as it likes

	mu     sync.Mutex
	held   *[gatherBytes]byte // set while writes are held back
	holds  int                // bytes of held
	failed error              // of what was held back
}

// Close closes the connection.
func (c *served) Close() error {
	c.forget()
	return c.TCPConn.Close()
}

// accepted prepares a server's new connection and keeps it for PreferLatency and GatherOf. A connection that cannot be
// prepared serves all the same.
func accepted(options []option) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		own, ok := c.(*served)
		if tcp, plain := c.(*net.TCPConn); plain {
			own, ok = &served{TCPConn: tcp, forget: func() {}}, true
		}
		if !ok {
			return ctx
		}
		_ = own.SetKeepAliveConfig(probes)
		setOn(own.TCPConn, options)
		return context.WithValue(ctx, connKey{}, own)
	}
}

func setOn(c *net.TCPConn, options []option) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = set(raw, options)
	}
}

// PreferLatency says that r's answer is a stream of the STREAMS plane: its connection's queue is kept short, and
// its packets pass others where a queue on the way has bands. Nothing happens where r does not come from a server
// of this package. The returned Flow is told what is sent; it may be nil, which is one too.
func PreferLatency(r *http.Request) *Flow {
	c, ok := r.Context().Value(connKey{}).(*served)
	if !ok {
		return nil
	}
	if !c.marked.Swap(true) {
		setOn(c.TCPConn, append([]option{nimbly}, marks(true)...))
	}
	return &Flow{conn: c, left: floodBurst}
}

// PreferThroughput says the opposite: where an earlier request on r's connection was a stream, its marks go.
func PreferThroughput(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*served); ok && c.marked.Swap(false) {
		setOn(c.TCPConn, marks(false))
	}
}

// RoomOf returns a function that says whether something short that is written to r's connection goes at once, also when the
// connection has been taken over. It is nil where r does not come from a server of this package.
func RoomOf(r *http.Request) func() bool {
	c, ok := r.Context().Value(connKey{}).(*served)
	if !ok {
		return nil
	}
	return shortcut.RoomOf(c)
}

// PlainTCP returns the connection under one that a server of this package has accepted, or c itself; nil where it is none of TCP.
func PlainTCP(c net.Conn) *net.TCPConn {
	switch c := c.(type) {
	case *served:
		return c.TCPConn
	case *net.TCPConn:
		return c
	}
	return nil
}
