// Package h2c is HTTP/2 without TLS by Go's defaults, as the design that Wrenn replaces used it between all its
// programs. Only the benchmarks speak it: it is what they show the trouble with.
//
// It is golang.org/x/net/http2, which is deprecated in favour of net/http's copy of the same code. That one would
// need a server and a transport of net/http, which are impl/transport's alone to make.
package h2c

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"

	"golang.org/x/net/http2"
)

// Serve answers the requests of one connection until it ends, and closes it.
func Serve(ctx context.Context, conn net.Conn, h http.Handler) {
	defer conn.Close() //nolint:errcheck // it has ended
	new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{Context: ctx, Handler: h})
}

// NewTransport returns a transport that connects by dial, once per server as long as that allows more streams.
// The owner calls CloseIdleConnections when it is done.
func NewTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http2.Transport {
	return &http2.Transport{
		AllowHTTP: true,
		DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, network, addr)
		},
	}
}
