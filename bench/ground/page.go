package ground

import (
	"crypto/sha1" //nolint:gosec // RFC 6455 asks for it; it protects nothing
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/bench/load"
	"wrenn/impl/transport"
)

// Page is where a browser on this machine finds a port of the guest through c, until the test ends: a reverse
// proxy on loopback, which every design has alike.
func (c *Client) Page(tb testing.TB, port int) string {
	tb.Helper()
	door := c.Port(port)
	pages := &httputil.ReverseProxy{
		Transport: door, FlushInterval: -1, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) { pr.Out.URL.Scheme, pr.Out.URL.Host = "http", "guest" },
	}
	srv := transport.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one, ok := door.(load.HTTP2)
		if !ok || r.Header.Get("Sec-Websocket-Key") == "" {
			pages.ServeHTTP(w, r)
			return
		}
		if err := joinSocket(w, r, one); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}))
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	tb.Cleanup(func() { _ = srv.Close(); <-ended })
	return "http://" + l.Addr().String()
}

// joinSocket joins a browser's WebSocket to one of the one-connection design.
func joinSocket(w http.ResponseWriter, r *http.Request, door load.HTTP2) error {
	up, feed := io.Pipe()
	defer up.Close() //nolint:errcheck // a pipe's never fails
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "http://guest"+r.URL.RequestURI(), up)
	if err != nil {
		return err
	}
	req.Header.Set(load.WebSocketHeader, "1")
	res, err := door.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("open a WebSocket: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // it is over whatever this says
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("open a WebSocket: %s", res.Status)
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()                                                                                  //nolint:errcheck // it is over whatever this says
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // as above
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	if err != nil {
		return nil // the browser has gone, and nobody is left to be told
	}
	go func() {
		_, err := io.Copy(feed, conn)
		_ = feed.CloseWithError(errors.Join(err, io.EOF))
	}()
	_, _ = io.Copy(conn, res.Body)
	return nil
}
