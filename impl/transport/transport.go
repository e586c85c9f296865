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
	"fmt"
	"net"
	"net/http"
	"net/netip"
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

// NewStreamProxyTransport returns the STREAMS plane's transport for a hop that passes on what others send to guests' daemons,
// by connections through their agents. Each key that is typed is a call of its own, and net/http's transport hands it from
// goroutine to goroutine, header and body apart. Unlike a user's server the daemon is ours and keeps idle connections longer
// than this does, so that any request may go on one.
func NewStreamProxyTransport() *Direct {
	return &Direct{DialContext: dialer(dialHost, streams...).DialContext, idle: idleConns{most: streamIdleMost, life: streamIdle}, steady: true, whole: true}
}

const (
	// streamIdle is how long a connection to a guest's daemon through its agent waits for its next exchange. One whose sandbox
	// is gone is found only when it has waited, so it is no longer than people pause who type.
	streamIdle = 15 * time.Second
	// streamIdleMost is how many wait, of one daemon's: more than the terminals of one sandbox that anyone types on at a time.
	streamIdleMost = 64
)

// NewProxyTransport returns the BULK plane's transport from the control plane's port proxy to guests' ports, by connections
// through their agents, or to any server. Nothing bounds the time to the response header: a user's program may think as long
// as it likes. The owner calls CloseIdleConnections when it is done.
func NewProxyTransport() *Direct {
	return &Direct{DialContext: dialer(dialHost).DialContext, idle: idleConns{most: guestIdleMost, life: guestIdle}}
}

const (
	// guestIdle is how long a connection to a user's server is kept: within a burst, so that the requests of a
	// page share a few connections, and no longer. Servers close idle ones after 2 s (gunicorn), 5 s (Node) or
	// more; one that serves a single connection at a time waits for ours that long.
	guestIdle = 250 * time.Millisecond
	// guestIdleMost is how many are kept for one port: a browser opens six per page.
	guestIdleMost = 64
)

// NewGuestPortTransport returns the transport from an agent's port proxy to one sandbox's ports, which
// connects by dial (DialGuest, or something around it). Each sandbox has its own, since addresses are reused
// by the next sandbox, which must never meet its predecessor's connection.
func NewGuestPortTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Direct {
	return &Direct{DialContext: dial, idle: idleConns{most: guestIdleMost, life: guestIdle}}
}

// bootDial bounds a dial to a guest that is booting. A SYN that arrives before the guest's network is up is
// lost, and TCP repeats it only after a second: dialling anew finds the guest sooner. 150 ms is several
// turns of a busy two-core host's scheduler, so that a guest that is up does answer within it.
const bootDial = 150 * time.Millisecond

// NewBootTransport returns the CONTROL plane's transport from an agent to one guest's daemon: for its first call, which
// is repeated until the guest has booted, and for those after it on the same connection, if it is quiet for less than
// 610 s. The owner calls CloseIdleConnections when the guest is gone or about to be stopped.
func NewBootTransport() *Direct {
	return &Direct{DialContext: dialer(bootDial).DialContext, idle: idleConns{most: 1, life: idleClient}, steady: true, settles: true}
}

var guestDialer = dialer(dialGuest)

// NewGuestStreamTransport returns the transport from an agent's port proxy to one sandbox's daemon, which
// connects by dial. Unlike a user's server the daemon is ours and keeps idle connections longer than this does
// (see idleClient), so they are used again: every key that is typed is a call of its own, and a dial costs a
// round trip, a goroutine of the daemon's and half a dozen system calls on either side. The owner must end them,
// idle or not, before the address becomes another sandbox's and before a pause.
func NewGuestStreamTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Direct {
	return &Direct{DialContext: dial, idle: idleConns{most: streamIdleMost, life: idleClient}, steady: true, whole: true}
}

// DialGuest connects to a guest, by address, on this host within 3.1 s or fails. The connection is a *net.TCPConn.
func DialGuest(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial a guest: %w", err)
	}
	conn, err := guestDialer.DialTCP(ctx, network, netip.AddrPort{}, to) // there is nothing to resolve
	if err != nil {
		return nil, err
	}
	return conn, nil
}
