package portproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

const (
	wait  = 20 * time.Second
	token = "token-of-the-agent"
)

// chain is the way of a request: client, edge, agent, guest, each a real server on loopback.
type chain struct {
	t     *testing.T
	edge  string // host:port
	host  *Host
	agent string       // its URL
	stop  func()       // ends the agent
	guest *net.TCPAddr // where all ports of all sandboxes lead

	mu      sync.Mutex
	addrs   map[string]netip.Addr  // sandboxes that run
	errs    map[string]error       // sandboxes that do not, at the edge
	targets map[string]AgentTarget // what the edge knows of them, beyond the agent
	resume  func(ctx context.Context, id string) error
	dials   int
	dial    func(ctx context.Context, network, addr string) (net.Conn, error) // instead of to guest
	idle    time.Duration
	most    int
	closed  bool                // the guest's port refuses
	seen    func(*http.Request) // is told of what the agent is asked; may be nil
}

// newChain starts edge and agent before a guest at addr, with one running sandbox, "abc".
func newChain(t *testing.T, guest net.Addr, settings ...func(*chain)) *chain {
	t.Helper()
	c := &chain{targets: map[string]AgentTarget{}, t: t, guest: guest.(*net.TCPAddr), addrs: map[string]netip.Addr{"abc": netip.MustParseAddr("127.0.0.1")}, errs: map[string]error{}}
	for _, set := range settings {
		set(c)
	}
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.host = NewHost(HostConfig{
		Lookup: c.lookup, Dial: c.dialGuest, Logger: logger, TunnelIdle: c.idle, MaxInFlight: c.most,
	})
	t.Cleanup(c.host.Close)
	var agent string
	agent, c.stop = serve(t, transport.RequireAgentToken(token, c.host.Mount(http.NotFoundHandler())), c.seen)
	c.agent = "http://" + agent
	agentURL, err := url.Parse(c.agent)
	require.NoError(t, err)
	bulk, streams := transport.NewProxyTransport(), transport.NewStreamProxyTransport()
	t.Cleanup(bulk.CloseIdleConnections)
	t.Cleanup(streams.CloseIdleConnections)
	door := NewEdge(EdgeConfig{
		Bulk: bulk, Streams: streams, Logger: logger, Resumer: resumerFunc(c.wake), TunnelIdle: c.idle,
		Lookup: func(_ context.Context, id string) (AgentTarget, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			target := c.targets[id]
			target.URL, target.Token = agentURL, token
			return target, c.errs[id]
		},
	})
	t.Cleanup(door.Close)
	c.edge, _ = serve(t, door, nil)
	return c
}

// edgeTo returns an edge to whose every sandbox the agent at agent leads.
func edgeTo(t *testing.T, agent *url.URL, via Exchanger) *Edge {
	t.Helper()
	e := NewEdge(EdgeConfig{Bulk: via, Streams: via, Logger: slog.New(slog.DiscardHandler), Lookup: func(context.Context, string) (AgentTarget, error) {
		return AgentTarget{URL: agent, Token: token}, nil
	}})
	t.Cleanup(e.Close)
	return e
}

// serve serves h, and tells seen of each request first, until the test ends or it is stopped.
func serve(t *testing.T, h http.Handler, seen func(*http.Request)) (addr string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := transport.NewProxyServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seen != nil {
			seen(r)
		}
		h.ServeHTTP(w, r)
	}))
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(transport.Listen(l, nil)) }()
	stop = sync.OnceFunc(func() {
		assert.NoError(t, srv.Close())
		assert.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

type resumerFunc func(ctx context.Context, id string) error

func (f resumerFunc) Resume(ctx context.Context, id string) error { return f(ctx, id) }

func (c *chain) wake(ctx context.Context, id string) error {
	c.mu.Lock()
	resume := c.resume
	c.mu.Unlock()
	if resume == nil {
		return ErrDenied
	}
	return resume(ctx, id)
}

// newHTTPChain is newChain before a server of handler.
func newHTTPChain(t *testing.T, handler http.Handler, settings ...func(*chain)) *chain {
	t.Helper()
	g := httptest.NewServer(handler)
	t.Cleanup(g.Close)
	return newChain(t, g.Listener.Addr(), settings...)
}

func (c *chain) lookup(_ context.Context, id string) (netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	addr, ok := c.addrs[id]
	if !ok {
		return netip.Addr{}, ErrNotFound
	}
	return addr, nil
}

func (c *chain) dialGuest(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	c.dials++
	dial, closed := c.dial, c.closed
	c.mu.Unlock()
	switch {
	case dial != nil:
		return dial(ctx, network, addr)
	case closed:
		return transport.DialGuest(ctx, network, "127.0.0.1:1") // tcpmux: nothing listens there
	}
	return transport.DialGuest(ctx, network, c.guest.String())
}

// with runs f while nothing else touches the chain.
func (c *chain) with(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// kill ends a sandbox as an agent does: first its state, then the proxy.
func (c *chain) kill(id string) {
	c.with(func() { delete(c.addrs, id) })
	c.host.EvictProxy(id)
}

// raw sends lines as they are and returns the connection to read from.
func (c *chain) raw(lines ...string) (net.Conn, *bufio.Reader) {
	c.t.Helper()
	conn, err := net.Dial("tcp", c.edge)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = conn.Close() })
	require.NoError(c.t, conn.SetDeadline(time.Now().Add(wait)))
	_, err = io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n")
	require.NoError(c.t, err)
	return conn, bufio.NewReader(conn)
}

// get sends a GET with these header lines and returns the answer, its body read.
func (c *chain) get(target string, headers ...string) (*http.Response, string) {
	c.t.Helper()
	return c.ask("GET "+target+" HTTP/1.1", headers...)
}

func (c *chain) ask(request string, headers ...string) (*http.Response, string) {
	c.t.Helper()
	conn, r := c.raw(append([]string{request, "Connection: close"}, headers...)...)
	defer conn.Close()
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	require.NoError(c.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(c.t, err)
	return res, string(body)
}

const byName = "Host: 8080-abc.wrenn.test:3002"

// rawGuest is a guest that answers each connection with answer(request head).
func rawGuest(t *testing.T, answer func(head string) string) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(wait))
				var head strings.Builder
				r := bufio.NewReader(conn)
				for {
					line, err := r.ReadString('\n')
					if err != nil || line == "\r\n" {
						break
					}
					head.WriteString(line)
				}
				_, _ = io.WriteString(conn, answer(head.String()))
			})
		}
	})
	return l.Addr()
}

// echoHead answers with the request's head as its body.
func echoHead(head string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(head), head)
}

// parseHead splits what echoHead returned into the request line and the headers.
func parseHead(t *testing.T, head string) (line string, header http.Header) {
	t.Helper()
	line, rest, _ := strings.Cut(head, "\r\n")
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\n" + rest + "\r\n")))
	require.NoError(t, err)
	req.Header.Set("Host", req.Host)
	return line, req.Header
}

func TestP03_PathsArriveByteForByte(t *testing.T) {
	c := newChain(t, rawGuest(t, echoHead))
	for _, target := range []string{
		"/", "/a", "/a/", "/a//b", "//", "//a", "//a//b/", "/a/../b", "/./a/.", "/..", "/a%2Fb", "/%2f", "/%2F%2e%2e/", "/a;b=c", "/;", "/a%20b", "/a+b", "/%E2%82%AC", "/%c3%28",
		"/a|b", `/a"b"<c>`, "/a^b`{}", "/[::1]", "/@:$&'()*,=!~", "/a?", "/?", "/a?b", "/a?b=c;d", "/a?b=%zz&;", "/a?b=c?d", "/a?x=/../y", "/a?b&&c==", "/a?+%20", "/%25", "/proxy/abc/80/x", "/a%00b",
		"/a#b", "/init", "/" + strings.Repeat("x", 8000), "/a%ff", "/ä",
	} {
		res, body := c.get(target, byName)
		require.Equal(t, http.StatusOK, res.StatusCode, target)
		line, _ := parseHead(t, body)
		assert.Equal(t, "GET "+target+" HTTP/1.1", line)
	}
	// The one exception: after two leading slashes, bytes that no URL may hold leave encoded.
	_, body := c.get(`//a|b?c|d`, byName)
	line, _ := parseHead(t, body)
	assert.Equal(t, `GET //a%7Cb?c|d HTTP/1.1`, line)
	// The absolute form, as to a proxy.
	_, body = c.get("http://8080-abc.wrenn.test/x%2Fy?z", byName)
	line, _ = parseHead(t, body)
	assert.Equal(t, "GET /x%2Fy?z HTTP/1.1", line)
}

func TestP04_HeadersThatTheGuestSees(t *testing.T) {
	c := newChain(t, rawGuest(t, echoHead))
	_, body := c.get("/", byName, "User-Agent: mine", "X-Forwarded-Proto: https", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil", "Forwarded: for=6.6.6.6",
		"E2b-Sandbox-Id: other", "E2b-Sandbox-Port: 1", "E2b-Traffic-Access-Token: t", "Wrenn-Agent-Token: x", "X-API-KEY: e2b_0123", "Authorization: Bearer e2b_0123",
		"Keep-Alive: 5", "Proxy-Authorization: Basic x", "TE: trailers", "Trailer: X", "Connection: X-Hop", "X-Hop: 1", "X-Access-Token: envd", "Accept-Encoding: br", "Cookie: a=b", "Origin: http://8080-abc.wrenn.test:3002")
	_, h := parseHead(t, body)
	assert.Equal(t, http.Header{
		"Host": {"8080-abc.wrenn.test:3002"}, "User-Agent": {"mine"}, "X-Forwarded-Host": {"8080-abc.wrenn.test:3002"}, "X-Forwarded-For": {"127.0.0.1"},
		"X-Access-Token": {"envd"}, "Accept-Encoding": {"br"}, "Cookie": {"a=b"}, "Te": {"trailers"}, "Origin": {"http://8080-abc.wrenn.test:3002"},
	}, h)
	// A user's own credentials of the same names pass, and nothing is invented.
	_, body = c.get("/", byName, "X-API-KEY: mine", "Authorization: Basic dXNlcjo=")
	_, h = parseHead(t, body)
	assert.Equal(t, http.Header{
		"Host": {"8080-abc.wrenn.test:3002"}, "X-Forwarded-Host": {"8080-abc.wrenn.test:3002"}, "X-Forwarded-For": {"127.0.0.1"},
		"X-Api-Key": {"mine"}, "Authorization": {"Basic dXNlcjo="},
	}, h)
}

func TestP07_AnswersComeBackUnchanged(t *testing.T) {
	for _, tc := range []struct {
		head string
		want http.Header
	}{
		{"HTTP/1.1 204 No Content\r\nX-A: 1\r\nX-A: 2\r\n", http.Header{"X-A": {"1", "2"}}},
		{"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\n", http.Header{"Content-Length": {"5"}}}, // no Date, no guessed type
		{"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.test/a//b\r\nContent-Length: 5\r\nDate: then\r\nServer: s\r\nContent-Encoding: gzip\r\n", http.Header{
			"Location": {"http://elsewhere.test/a//b"}, "Content-Length": {"5"}, "Date": {"then"}, "Server": {"s"}, "Content-Encoding": {"gzip"},
		}},
		{"HTTP/1.1 418 Teapot\r\nSet-Cookie: a=b; Path=/x\r\nRefresh: 5; url=/x\r\nContent-Length: 5\r\nKeep-Alive: timeout=5\r\n", http.Header{
			"Set-Cookie": {"a=b; Path=/x"}, "Refresh": {"5; url=/x"}, "Content-Length": {"5"},
		}},
	} {
		c := newChain(t, rawGuest(t, func(string) string { return tc.head + "\r\n<htm>" }))
		res, body := c.get("/", byName)
		res.Header.Del("Connection")
		assert.Equal(t, tc.want, res.Header, tc.head)
		if res.StatusCode != http.StatusNoContent {
			assert.Equal(t, "<htm>", body)
		}
		assert.Equal(t, tc.head[9:12], fmt.Sprint(res.StatusCode))
	}
}
