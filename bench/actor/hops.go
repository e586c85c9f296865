package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"

	"wrenn/bench/h2c"
	"wrenn/impl/transport"
)

// The design that Wrenn replaces sends everything between two programs through one HTTP/2 transport:
// terminals' calls and the traffic of users' ports. These two hops do that, with Go's defaults and nothing
// tuned for or against it. Neither authenticates or looks anything up, so they do less per request than
// Wrenn's own hops.

// WebSocketHeader marks a request whose two bodies are the bytes of a WebSocket. RFC 8441's extended CONNECT
// says the same, which Go's server keeps switched off by default; to flow control they are alike.
const WebSocketHeader = "Actor-Websocket"

// serveHTTP2 serves HTTP/2 without TLS.
func serveHTTP2(ctx context.Context, addr string, h http.Handler) error {
	return serve(ctx, addr, func(ctx context.Context, conn net.Conn) { h2c.Serve(ctx, conn, h) })
}

func newProxy(rt http.RoundTripper, to func(host string) *url.URL) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     rt,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(slog.NewTextHandler(os.Stderr, nil), slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(to(pr.In.Host))
			pr.Out.Host = pr.In.Host
		},
	}
}

func serveEdge(ctx context.Context, listen, host string) error {
	to := &url.URL{Scheme: "http", Host: host}
	rt := h2c.NewTransport(new(net.Dialer).DialContext)
	defer rt.CloseIdleConnections()
	return serveHTTP2(ctx, listen, newProxy(rt, func(string) *url.URL { return to }))
}

// serveHost takes the port from the host name's first part, as {port}-{sandbox}.
func serveHost(ctx context.Context, listen, guest string) error {
	// Go's own defaults, but for the number of idle connections: two would be dialled anew all the time.
	rt := transport.NewStreamTransport()
	defer rt.CloseIdleConnections()
	to := func(host string) *url.URL {
		port, _, _ := strings.Cut(host, "-")
		return &url.URL{Scheme: "http", Host: net.JoinHostPort(guest, port)}
	}
	proxy := newProxy(rt, to)
	return serveHTTP2(ctx, listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(WebSocketHeader) == "" {
			proxy.ServeHTTP(w, r)
			return
		}
		if err := bridge(w, r, rt, to(r.Host)); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}))
}

// bridge opens a WebSocket to a guest and joins it to the two bodies of an exchange.
func bridge(w http.ResponseWriter, r *http.Request, rt http.RoundTripper, to *url.URL) error {
	to.Path, to.RawPath, to.RawQuery = r.URL.Path, r.URL.RawPath, r.URL.RawQuery
	out, err := http.NewRequestWithContext(r.Context(), http.MethodGet, to.String(), nil)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
	} {
		out.Header.Set(name, value)
	}
	res, err := rt.RoundTrip(out)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // it is over whatever this says
	conn, ok := res.Body.(io.ReadWriter)
	if !ok {
		return fmt.Errorf("the guest answers %s", res.Status)
	}
	w.WriteHeader(http.StatusOK)
	go func() { _, _ = io.Copy(conn, r.Body) }() // ends with the exchange
	_, _ = io.Copy(flushing{w, http.NewResponseController(w)}, conn)
	return nil
}

// flushing sends each write at once.
type flushing struct {
	w  io.Writer
	rc *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}
