package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
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
	// DialContext connects. It may be replaced before the first exchange.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	idle idleConns
	// steady: the other side keeps idle connections for longer than this does, so any request may go on one.
	steady bool
	// whole: a short body of a known length is waited for and goes with the header, in one write and from the
	// caller's goroutine. It is for servers that answer no request before they have its body.
	whole bool
	// settles: an answer is over only once its request has been sent, so that the connection is sure to be kept. It is
	// for servers that answer when they have the body, and requests whose context has an end.
	settles bool
}

// KeepIdle changes how long a connection is kept for the next exchange, before the first one; for tests that
// shorten clocks.
func (t *Direct) KeepIdle(d time.Duration) { t.idle.life = d }

// RoundTrip makes one exchange. As with http.Transport the answer may come before the body has been sent, and
// a body of 101 is an io.ReadWriteCloser; of client traces it knows GotConn, Got100Continue and Got1xxResponse.
//
// Where the other side may close a kept connection just then, it carries only what may be sent again: a request of
// an idempotent method without a body.
func (t *Direct) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.RoundTripBy(r, Way{}, httptrace.ContextClientTrace(r.Context()))
}

// Way is how an exchange reaches its server, where that is not by a connection to its URL's host. The zero Way is by one.
type Way struct {
	// Via is connected to, by its scheme and host.
	Via *url.URL
	// Behind tells apart what there is behind that host: none of it shares a connection with another.
	Behind string
	// Open makes of a new connection to that host, c, one to what is behind it. When ctx ends it is to return within
	// OpenTimeout. Such a connection ends by a reset, until it is upgraded: who carries it cannot tell an end from that of
	// what its client has to say, and a client that ends some hundred connections to one address per second in the other way
	// runs out of ports, since each is kept from use for a minute.
	Open func(ctx context.Context, c net.Conn) error
}

// RoundTripBy is RoundTrip by way, with a trace (nil is none) that r's context need not hold, for which r would have to be
// copied.
func (t *Direct) RoundTripBy(r *http.Request, way Way, trace *httptrace.ClientTrace) (*http.Response, error) {
	target := r.URL.RequestURI()
	if strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return nil, errors.Join(errors.New("the request's target has a control character"), closeBody(r))
	}
	via := r.URL
	if way.Via != nil {
		via = way.Via
	}
	to := endpoint{tls: via.Scheme == "https", addr: via.Host, behind: way.Behind}
	if t.reuses(r) {
		if conn := t.idle.take(to); conn != nil {
			res, began, err := t.exchange(r, target, to, conn, trace)
			if err == nil || began || !repeatable(r) || r.Context().Err() != nil {
				return res, err
			}
		}
	}
	conn, err := t.open(r.Context(), to, way.Open)
	if err != nil {
		return nil, errors.Join(err, closeBody(r))
	}
	res, _, err := t.exchange(r, target, to, conn, trace)
	return res, err
}

// CloseIdleConnections closes those that are kept; others follow when their exchanges end.
func (t *Direct) CloseIdleConnections() { t.idle.close() }

// reuses says whether r may go on a kept connection, and its own be kept: one for a request that may not would
// only add to those that wait.
func (t *Direct) reuses(r *http.Request) bool { return t.steady || repeatable(r) }

// repeatable says whether r may be sent twice.
func repeatable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return !hasBody(r)
	}
	return false
}

// OpenTimeout bounds Way.Open. What a guest's port may take until it has been tried is a little less (see dialGuest).
const OpenTimeout = 5 * time.Second

// open connects to an endpoint, and to what is behind it.
func (t *Direct) open(ctx context.Context, to endpoint, through func(context.Context, net.Conn) error) (net.Conn, error) {
	conn, err := t.connect(ctx, to)
	if err != nil || through == nil {
		return conn, err
	}
	if err := conn.SetDeadline(time.Now().Add(OpenTimeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := through(ctx, conn); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, errors.Join(err, conn.Close())
	}
	endByReset(conn, true)
	return conn, conn.SetDeadline(time.Time{})
}

// endByReset says whether c's close resets it.
func endByReset(c net.Conn, reset bool) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(map[bool]int{true: 0, false: -1}[reset])
	}
}

func (t *Direct) connect(ctx context.Context, to endpoint) (net.Conn, error) {
	addr, port := to.addr, "80"
	if to.tls {
		port = "443"
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), port)
	}
	conn, err := t.DialContext(ctx, "tcp", addr)
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
