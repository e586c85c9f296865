package load

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// At is a door to one path behind another door, whatever path is asked for: a load upon a server of somebody else's.
type At struct {
	Door
	Path string
}

// RoundTrip implements Door.
func (d At) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Path = d.Path
	return d.Door.RoundTrip(r)
}

// HTTP1 is a door behind which HTTP/1.1 is spoken: a proxy, or the guest's server itself.
type HTTP1 struct {
	// Transport makes the connections.
	Transport http.RoundTripper
	// URL is the scheme and host to connect to, and Host what requests name; empty for URL's.
	URL  *url.URL
	Host string
	// Header goes with each request; may be nil.
	Header http.Header
}

// RoundTrip implements Door.
func (d HTTP1) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host, r.Host = d.URL.Scheme, d.URL.Host, d.Host
	for name, values := range d.Header {
		r.Header[name] = values
	}
	return d.Transport.RoundTrip(r)
}

// WebSocket implements Door.
func (d HTTP1) WebSocket(ctx context.Context, path string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest"+path, nil)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
	} {
		r.Header.Set(name, value)
	}
	res, err := d.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("open a WebSocket: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		_ = res.Body.Close()
		return nil, fmt.Errorf("open a WebSocket: %s", res.Status)
	}
	return res.Body, nil
}

// HTTP2 is the door of the one-connection design (bench/actor's edge), where a WebSocket's bytes are the two
// bodies of an exchange.
type HTTP2 struct {
	HTTP1
}

// WebSocketHeader is bench/actor's.
const WebSocketHeader = "Actor-Websocket"

// WebSocket implements Door.
func (d HTTP2) WebSocket(ctx context.Context, path string) (io.ReadCloser, error) {
	up, keep := io.Pipe()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://guest"+path, up)
	if err != nil {
		return nil, err
	}
	r.Header.Set(WebSocketHeader, "1")
	res, err := d.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("open a WebSocket: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		_, _ = res.Body.Close(), keep.Close()
		return nil, fmt.Errorf("open a WebSocket: %s", res.Status)
	}
	return webSocket{res.Body, keep}, nil
}

// webSocket closes both ways.
type webSocket struct {
	io.ReadCloser
	up io.Closer
}

func (w webSocket) Close() error {
	_ = w.up.Close() // a pipe's never fails
	return w.ReadCloser.Close()
}
