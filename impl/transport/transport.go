// Package transport builds every http.Transport and http.Server of the system, each with its numbers
// and the reason for them.
//
// There are three planes, and no two of them ever share a TCP connection (CONTROL: calls that manage
// sandboxes; STREAMS: terminals, exec, watches; BULK: the bytes of users' own ports). A download may
// then queue megabytes in its socket while a keystroke travels on another.
//
// Everything on the host's side speaks HTTP/1.1 and only that, so SPEC T08, which is about what streams of
// one HTTP/2 connection do to each other, concerns the guest daemon's server alone, which also takes HTTP/2
// from programs that reach it directly. One connection then carries one exchange at a time, so no
// stream can starve another of a shared receive window, WebSockets can be proxied, and a GOAWAY never
// takes a whole client process down. What HTTP/2 would save, a connection per parallel exchange,
// costs little between machines that know each other.
//
// No transport reads a proxy from the environment: the traffic stays between Wrenn's own parts.
package transport

import (
	"context"
	"net"
	"net/http"
	"time"
)

const (
	// idleClient is how long a client side keeps an idle connection. It is 10 s under IdleTimeout of
	// our servers and 30 s under the guest daemon's 640 s, so it is always the client that closes
	// first: a server that closed first would lose a request just sent on that connection.
	idleClient = 610 * time.Second

	// dialHost bounds a dial to another of our programs. A live host answers a SYN within one round
	// trip; 5 s leaves room for one lost SYN (retransmitted after 1 s) and the next (after 3 s).
	dialHost = 5 * time.Second

	// dialGuest bounds a dial to a guest on this host. There is no loss on a veth, so only a paused or
	// starved guest takes long; 3 s lets the first two retransmissions through (1 s, 3 s).
	dialGuest = 3100 * time.Millisecond

	// keepAlive is the idle time before, and the pause between, TCP probes; with keepAliveProbes lost
	// a vanished peer is noticed after a minute, while a terminal that is merely quiet lives for days.
	keepAlive       = 15 * time.Second
	keepAliveProbes = 3

	// expectContinue is how long a body is held back for "100 Continue" before it is sent anyway; 1 s is
	// what curl waits too. Zero would send it at once and so defeat the header.
	expectContinue = time.Second

	// bulkBuffer is the read and write buffer of a BULK connection: the size of the pieces that
	// ReverseProxy copies (32 KiB), so that one piece is one system call.
	bulkBuffer = 32 << 10
)

// probes are the keepalives of every connection, dialled or accepted.
var probes = net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: keepAliveProbes}

func dialer(timeout time.Duration, options ...option) *net.Dialer {
	return &net.Dialer{Timeout: timeout, KeepAliveConfig: probes, Control: control(options)}
}

func http1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// base is what all transports share: HTTP/1.1, bodies as they are, and no limit on the number of
// connections (a limit would make requests wait for each other), only on those kept idle per host.
func base(dial func(ctx context.Context, network, addr string) (net.Conn, error), idlePerHost int) *http.Transport {
	return &http.Transport{
		DialContext:           dial,
		DisableCompression:    true,
		ExpectContinueTimeout: expectContinue,
		IdleConnTimeout:       idleClient,
		MaxIdleConnsPerHost:   idlePerHost,
		Protocols:             http1(),
		TLSHandshakeTimeout:   dialHost,
	}
}

// NewRPCTransport returns the CONTROL plane's transport from the control plane to agents: short unary
// calls, whose deadlines are their contexts'. 64 idle connections per agent cover a burst of creates
// without a new dial for each. The owner calls CloseIdleConnections when it is done.
func NewRPCTransport() *http.Transport {
	return base(dialer(dialHost, giveUp).DialContext, 64)
}

// NewStreamTransport returns the STREAMS plane's transport from the control plane to agents: terminals,
// exec and watches, and all traffic to the guest daemon's port. Nothing bounds the time to the response
// header or the whole exchange, since a stream lives for days. 256 idle connections per agent: an SDK
// process alone keeps up to 200 calls in flight. The owner calls CloseIdleConnections when it is done.
func NewStreamTransport() *http.Transport {
	return base(dialer(dialHost, streams...).DialContext, 256)
}

// NewProxyTransport returns the BULK plane's transport from the control plane's port proxy to agents.
// Nothing bounds the time to the response header: a user's program may think as long as it likes.
// 1024 idle connections per agent: a browser opens six per page and host name, and hundreds of pages on
// one agent should find their connections again. The owner calls CloseIdleConnections when it is done.
func NewProxyTransport() *http.Transport {
	t := base(dialer(dialHost).DialContext, 1024)
	t.ReadBufferSize, t.WriteBufferSize = bulkBuffer, bulkBuffer
	return t
}

// bootDial bounds a dial to a guest that is booting. A SYN that arrives before the guest's network is up is
// lost, and TCP repeats it only after a second: dialling anew finds the guest sooner. 150 ms is several
// turns of a busy two-core host's scheduler, so that a guest that is up does answer within it.
const bootDial = 150 * time.Millisecond

// NewBootTransport returns the transport for the first call to a guest, which is repeated until the guest
// has booted. The owner calls CloseIdleConnections afterwards.
func NewBootTransport() *http.Transport {
	return base(dialer(bootDial).DialContext, 1)
}

// NewGuestPortTransport returns the transport from an agent's port proxy to one sandbox's ports, which
// connects by dial (DialGuest, or something around it). Connections are used once: a user's server may
// close an idle one at any moment (Node does after 5 s) and a request just sent on it could not be
// repeated; and an address is reused by the next sandbox, which must never meet its predecessor's
// connection. A dial over a veth costs well under a millisecond.
func NewGuestPortTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	t := base(dial, 0)
	t.DisableKeepAlives = true
	t.ReadBufferSize, t.WriteBufferSize = bulkBuffer, bulkBuffer
	return t
}

// DialGuest connects to a guest on this host within 3.1 s or fails. The connection is a *net.TCPConn.
func DialGuest(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialer(dialGuest).DialContext(ctx, network, addr)
}
