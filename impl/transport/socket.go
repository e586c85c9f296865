package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"syscall"

	"golang.org/x/sys/unix"
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

// option is an integer socket option of TCP.
type option struct{ name, value int }

var (
	giveUp  = option{unix.TCP_USER_TIMEOUT, userTimeout}
	nimbly  = option{unix.TCP_NOTSENT_LOWAT, notSentLowat}
	streams = []option{giveUp, nimbly}
)

// control sets options on a socket that is about to connect.
func control(options []option) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error { return set(c, options) }
}

func set(c syscall.RawConn, options []option) error {
	var inner error
	err := c.Control(func(fd uintptr) {
		for _, o := range options {
			if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, o.name, o.value); err != nil {
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

// accepted prepares a server's new connection and keeps it for PreferLatency. A connection that cannot be
// prepared serves all the same.
func accepted(options []option) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return ctx
		}
		_ = tcp.SetKeepAliveConfig(probes)
		setOn(tcp, options)
		return context.WithValue(ctx, connKey{}, tcp)
	}
}

func setOn(c *net.TCPConn, options []option) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = set(raw, options)
	}
}

// PreferLatency says that r's answer is a stream of the STREAMS plane: its connection's queue is kept short.
// Nothing happens where r does not come from a server of this package. Connections of the STREAMS plane carry
// nothing else, so this need not be undone.
func PreferLatency(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*net.TCPConn); ok {
		setOn(c, []option{nimbly})
	}
}
