// Package envdclient is the host's client of the daemon in a guest: it starts the daemon's service,
// runs programs and terminals, and moves files. It makes no connections of its own; the caller hands in
// the http.Client, one per sandbox.
package envdclient

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"wrenn/proto/gen/envd/filesystem/filesystemconnect"
	"wrenn/proto/gen/envd/process/processconnect"
)

// Config is what a Client needs.
type Config struct {
	// BaseURL is where the daemon answers, without a path: "http://10.11.0.7:49983".
	BaseURL string
	// HTTPClient makes the requests. Its Timeout must be zero, for that would cut streams.
	HTTPClient *http.Client
	// Headers go with every request (how a proxy on the way finds the sandbox); may be nil.
	Headers http.Header
	// AccessToken opens the daemon; empty where none is set.
	AccessToken string
}

// maxMessage bounds a message from a guest in bytes: a directory listing of 100,000 entries fits, an event
// of output is at most 32 KiB.
const maxMessage = 16 << 20

// Client talks to one guest's daemon. It is safe for concurrent use.
type Client struct {
	base  string
	http  doer
	procs processconnect.ProcessClient
	files filesystemconnect.FilesystemClient
}

// Error is an answer of the daemon's plain HTTP routes that is not a success.
type Error struct {
	Status  int    // HTTP status
	Message string // the daemon's, or the start of a body that is not its JSON
}

// Error says the status and the message.
func (e *Error) Error() string { return fmt.Sprintf("envd answers %d: %s", e.Status, e.Message) }

// New makes a Client; it sends nothing yet.
func New(c Config) (*Client, error) {
	u, err := url.Parse(c.BaseURL)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return nil, fmt.Errorf("make envd client: base URL %q is not absolute", c.BaseURL)
	}
	if c.HTTPClient == nil || c.HTTPClient.Timeout != 0 {
		return nil, errors.New("make envd client: an HTTP client without a timeout is needed")
	}
	// A guest belongs to whoever has root in it: it may not send the host and its tokens elsewhere.
	client := *c.HTTPClient
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	d := doer{client: &client, headers: c.Headers.Clone(), token: c.AccessToken}
	base := strings.TrimRight(c.BaseURL, "/")
	return &Client{
		base: base, http: d,
		procs: processconnect.NewProcessClient(calls{d}, base, connect.WithReadMaxBytes(maxMessage)),
		files: filesystemconnect.NewFilesystemClient(d, base, connect.WithReadMaxBytes(maxMessage)),
	}, nil
}

// CloseIdle closes the connections that wait for reuse, as must be done before the guest is paused.
func (c *Client) CloseIdle() { c.http.client.CloseIdleConnections() }

// doer adds what every request carries.
type doer struct {
	client  *http.Client
	headers http.Header
	token   string
}

// Do implements connect.HTTPClient.
func (d doer) Do(r *http.Request) (*http.Response, error) {
	for k, v := range d.headers {
		r.Header[k] = v
	}
	if d.token != "" {
		r.Header.Set("X-Access-Token", d.token)
	}
	return d.client.Do(r)
}

// calls sends a short call, of which a terminal makes one per key, as one packet: net/http sends the header ahead of a
// body that is not one of a few types of reader.
type calls struct{ doer }

// shortCall is the longest body in bytes that is sent with its header. Keys take tens, what is pasted has packets enough.
const shortCall = 1 << 10

// Do implements connect.HTTPClient.
func (c calls) Do(r *http.Request) (*http.Response, error) {
	if 0 < r.ContentLength && r.ContentLength <= shortCall {
		body, err := io.ReadAll(r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return nil, fmt.Errorf("read the message to be sent: %w", err)
		}
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	return c.doer.Do(r)
}

// Health returns nil when the daemon answers.
func (c *Client) Health(ctx context.Context) error {
	res, err := c.plain(ctx, http.MethodGet, "/health", nil, nil)
	if err != nil {
		return fmt.Errorf("ask envd for its health: %w", err)
	}
	return res.Body.Close()
}

// Freeze cuts the daemon's other connections, stops the users' processes and writes the guest's file systems
// back; Thaw lets the processes go on. Both may be repeated.
func (c *Client) Freeze(ctx context.Context) error { return c.control(ctx, "/freeze") }

// Thaw is Freeze's counterpart.
func (c *Client) Thaw(ctx context.Context) error { return c.control(ctx, "/unfreeze") }

func (c *Client) control(ctx context.Context, route string) error {
	for {
		res, err := c.plain(ctx, http.MethodPost, route, nil, nil)
		if err == nil {
			return res.Body.Close()
		}
		var answered *Error
		if errors.As(err, &answered) || ctx.Err() != nil {
			return fmt.Errorf("ask envd for %s: %w", route, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ask envd for %s: %w", route, err)
		case <-time.After(betweenTries):
		}
	}
}

// betweenTries is the pause after a request that failed.
const betweenTries = 5 * time.Millisecond

// plain makes a request to one of the daemon's HTTP routes; the caller closes the body of a success.
func (c *Client) plain(ctx context.Context, method, route string, h http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+route, body)
	if err != nil {
		return nil, err
	}
	for k, v := range h {
		req.Header[k] = v
	}
	return c.send(req)
}

func (c *Client) send(req *http.Request) (*http.Response, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		defer func() { _ = res.Body.Close() }()
		return nil, errorOf(res)
	}
	return res, nil
}

// maxErrorBody bounds how much of an error's body is read, in bytes.
const maxErrorBody = 4096

func errorOf(res *http.Response) error {
	raw, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	var body struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &body) != nil || body.Message == "" {
		body.Message = strings.TrimSpace(string(raw))
	}
	return &Error{Status: res.StatusCode, Message: body.Message}
}

// as makes the request of an RPC speak for a user; for the default one if user is empty.
func as[T any](user string, m *T) *connect.Request[T] {
	req := connect.NewRequest(m)
	if user != "" {
		req.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
	return req
}
