package portproxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

// listen serves connections with f, each in its own goroutine, until the test ends.
func listen(t *testing.T, f func(*net.TCPConn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr()
}

// pipe opens a pipe at the agent, as a control plane does.
func (c *chain) pipe(id, protocol string) *net.TCPConn {
	c.t.Helper()
	agent, err := url.Parse(c.agent)
	require.NoError(c.t, err)
	conn, err := net.Dial("tcp", agent.Host)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = conn.Close() })
	require.NoError(c.t, conn.SetDeadline(time.Now().Add(wait)))
	require.NoError(c.t, pipe{to: route{id: id, port: 8080}, agent: AgentTarget{URL: agent, Token: token}, protocol: protocol}.open(c.t.Context(), conn))
	return conn.(*net.TCPConn)
}

// A program that answers whoever connects, as a loop around nc does, is heard too.
func TestP07_AGuestMaySpeakFirst(t *testing.T) {
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfirst")
		_, _ = http.ReadRequest(bufio.NewReader(conn))
	}))
	for range 20 {
		res, body := c.get("/", byName)
		require.Equal(t, http.StatusOK, res.StatusCode)
		require.Equal(t, "first", body)
	}
}

func TestP08_AnAgentSaysWhetherThereCouldBeAPipe(t *testing.T) {
	c := newHTTPChain(t, http.NotFoundHandler())
	for target, code := range map[string]int{
		"/pipe/abc/8080": http.StatusUpgradeRequired, "/pipe/gone/8080": http.StatusBadGateway, "/pipe/abc/0": http.StatusBadRequest,
		"/pipe/abc": http.StatusBadRequest, "/pipe/abc/80/": http.StatusBadRequest, "/pipe/a..b/80": http.StatusBadRequest,
	} {
		assert.Equal(t, code, c.askAgent("agent.test", target).StatusCode, target)
	}
	assert.Equal(t, http.StatusUpgradeRequired, c.askAgent("agent.test", "/pipe/abc/8080", "Connection: Upgrade", "Upgrade: websocket").StatusCode)
	c.with(func() { c.closed = true })
	assert.Equal(t, http.StatusBadGateway, c.askAgent("agent.test", "/pipe/abc/8080", "Connection: Upgrade", "Upgrade: "+pipeBulk).StatusCode)
	g, _ := c.host.guests.Load("abc")
	assert.Zero(t, g.(*guest).inFlight.Load(), "who was refused counts for nothing")
}

// What is no pipe and no refusal is no answer of the guest's, whatever it says.
func TestP08_AnAgentThatCannotBeUnderstoodIsUnreachable(t *testing.T) {
	for _, said := range []string{
		"", "x", "HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404 page not found\n", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret",
		`HTTP/1.1 401 Unauthorized` + "\r\nConnection: close\r\n\r\n" + `{"code":401,"message":"secret"}`,
		`HTTP/1.1 502 Bad Gateway` + "\r\nConnection: close\r\n\r\n" + `{"code":200}`,
		"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 100\r\n\r\nshort", strings.Repeat("secret", 100),
	} {
		agent := listen(t, func(conn *net.TCPConn) {
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, said)
		})
		bulk := transport.NewProxyTransport()
		edge := edgeTo(t, &url.URL{Scheme: "http", Host: agent.String()}, bulk)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Host = "8080-abc.x"
		w := httptest.NewRecorder()
		edge.ServeHTTP(w, r)
		assert.Equal(t, http.StatusServiceUnavailable, w.Code, said)
		assert.NotContains(t, w.Body.String(), "secret")
		bulk.CloseIdleConnections()
	}
}

func TestP08_AnAgentThatIsLostIsNoGuestThatIs(t *testing.T) {
	asked := make(chan struct{})
	c := newHTTPChain(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	_, r := c.raw("GET / HTTP/1.1", byName)
	<-asked
	c.stop()
	c.host.Close()
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	assert.JSONEq(t, `{"sandboxId":"abc","message":"The host of the sandbox cannot be reached, try again","code":503}`, string(body))
}

// A guest that neither reads nor writes would never find out that nobody waits for its answer: the pipe ends all the same.
func TestP07_APipeEndsWithTheClient(t *testing.T) {
	asked, hang := make(chan struct{}), make(chan struct{})
	defer close(hang)
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		close(asked)
		<-hang
	}))
	conn, _ := c.raw("GET / HTTP/1.1", byName)
	<-asked
	require.Equal(t, 1, c.connections("abc"))
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { return c.connections("abc") == 0 }, wait, time.Millisecond)
}

// Who has said all may have gone since: a guest that says nothing would never find out.
func TestP07_APipeEndsWhoseClientHasGoneAfterItsHalf(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		_, _ = io.ReadAll(conn)
		_, _ = io.WriteString(conn, "x")
		<-hang
	}))
	conn := c.pipe("abc", pipeBulk)
	require.NoError(t, conn.CloseWrite())
	_, err := conn.Read(make([]byte, 1))
	require.NoError(t, err)
	require.Equal(t, 1, c.connections("abc"))
	require.NoError(t, conn.SetLinger(0))
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { return c.connections("abc") == 0 }, wait, time.Millisecond)
}

// What a guest has said before it broke off is heard, however slow the listener, and that it broke off as well.
func TestP07_WhatCameBeforeABreakArrives(t *testing.T) {
	for name, size := range map[string]int{"little": 1000, "a flood": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t, listen(t, func(conn *net.TCPConn) {
				_, _ = conn.Write(make([]byte, size))
				waitSent(conn)
				_ = conn.SetLinger(0)
			}))
			conn := c.pipe("abc", pipeBulk)
			time.Sleep(100 * time.Millisecond)
			got := 0
			for {
				n, err := conn.Read(make([]byte, 4096))
				if got += n; err != nil {
					assert.NotErrorIs(t, err, io.EOF, "as if it were whole")
					break
				}
				if got%(1<<20) < 4096 {
					time.Sleep(10 * time.Millisecond)
				}
			}
			assert.Equal(t, size, got)
		})
	}
}

// Nobody waits for what is left to go to a client that has gone as well.
func TestP07_APipeIsOverWhenBothEndsAre(t *testing.T) {
	broken := make(chan struct{}, 2)
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		_ = conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = conn.Write(make([]byte, 64<<20)) // which fills all buffers on the way
		_ = conn.SetLinger(0)
		_ = conn.Close()
		broken <- struct{}{}
	}))
	c.with(func() { c.addrs["other"] = netip.MustParseAddr("127.0.0.1") })
	for id, end := range map[string]func(*net.TCPConn){
		"abc":   func(conn *net.TCPConn) { _ = conn.SetLinger(0); _ = conn.Close() },
		"other": func(*net.TCPConn) { c.kill("other") },
	} {
		t.Run(id, func(t *testing.T) {
			conn := c.pipe(id, pipeBulk)
			<-broken
			time.Sleep(50 * time.Millisecond)
			g, _ := c.host.guests.Load(id)
			begin := time.Now()
			end(conn)
			require.Eventually(t, func() bool { return g.(*guest).inFlight.Load() == 0 }, wait, time.Millisecond)
			assert.Less(t, time.Since(begin), sentPatience)
		})
	}
}

// A guest that has answered, and said that this was all, may refuse the rest of what it is sent: its answer arrives.
func TestP07_ALateRefusalTakesNothingBack(t *testing.T) {
	const size = 2 << 20
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		_, _ = io.ReadFull(conn, make([]byte, 1))
		_, _ = conn.Write(make([]byte, size))
		_ = conn.CloseWrite()
		waitSent(conn)
	}))
	conn := c.pipe("abc", pipeBulk)
	go func() { _, _ = io.Copy(conn, io.LimitReader(zeros{}, 64<<20)) }()
	time.Sleep(200 * time.Millisecond)
	got, _ := io.Copy(io.Discard, conn)
	assert.EqualValues(t, size, got)
}

// A guest that refuses an upload answers and resets the connection, since it has not read all: its answer comes first.
func TestP07_ARefusalOfAFloodArrives(t *testing.T) {
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		_, _ = io.CopyN(io.Discard, conn, 4<<20) // by now it is spliced
		_, _ = io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
	}))
	for i := range 10 {
		conn, r := c.raw("POST / HTTP/1.1", byName, "Content-Length: 100000000")
		go func() { _, _ = io.Copy(conn, io.LimitReader(zeros{}, 100000000)) }()
		res, err := http.ReadResponse(r, nil)
		require.NoError(t, err, i)
		assert.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
		require.NoError(t, conn.Close())
	}
}

// A control plane that closed its pipes first would have each of its ports kept from use for a minute, and some hundred
// requests per second would use up all. The guest sees a client that closes, and nothing worse.
func TestP07_PipesUseUpNoPorts(t *testing.T) {
	ends := make(chan error, 1)
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		r := bufio.NewReader(conn)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				ends <- err
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}))
	agent, err := url.Parse(c.agent)
	require.NoError(t, err)
	port, err := strconv.ParseUint(agent.Port(), 10, 16)
	require.NoError(t, err)
	waiting := func() int { // those that a former server of this port has left may be among them
		table, err := os.ReadFile("/proc/net/tcp")
		require.NoError(t, err)
		const waits = "06" // TCP_TIME_WAIT of linux/tcp_states.h
		return strings.Count(string(table), fmt.Sprintf(" 0100007F:%04X %s ", port, waits))
	}
	before := waiting()
	for _, ask := range []string{"POST", "GET"} { // one whose pipe may not be kept, and one whose pipe waits for nothing
		_, body := c.ask(ask+" / HTTP/1.1", byName)
		require.Equal(t, "ok", body)
		require.ErrorIs(t, <-ends, io.EOF)
	}
	assert.LessOrEqual(t, waiting(), before)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// A body that ends with its connection is not whole because the connection has broken.
func TestP07_ABrokenBodyIsNotWhole(t *testing.T) {
	c := newChain(t, listen(t, func(conn *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%d", 12345)
		waitSent(conn)
		_ = conn.SetLinger(0)
	}))
	_, r := c.raw("GET / HTTP/1.1", byName)
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, "12345", string(body))
}

// An agent may be reached by TLS, behind something that ends it.
func TestP07_APipeByTLS(t *testing.T) {
	c := newHTTPChain(t, upgradeGuest(func(conn net.Conn, r *bufio.Reader) { _, _ = io.Copy(conn, r) }))
	agent := httptest.NewTLSServer(transport.RequireAgentToken(token, c.host.Mount(http.NotFoundHandler())))
	t.Cleanup(agent.Close)
	at, err := url.Parse(agent.URL)
	require.NoError(t, err)
	bulk := transport.NewProxyTransport()
	t.Cleanup(bulk.CloseIdleConnections)
	bulk.TLSClientConfig = agent.Client().Transport.(*http.Transport).TLSClientConfig
	c.edge, _ = serve(t, edgeTo(t, at, bulk), nil)
	conn, r := c.upgrade()
	for range 3 {
		_, err := io.WriteString(conn, "ping\n")
		require.NoError(t, err)
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, "ping\n", line)
	}
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { return c.connections("abc") == 0 }, wait, time.Millisecond)
}

// The control plane's own calls go where the proxy's go, and an agent's refusal is an answer to them.
func TestT07_OwnCallsToTheDaemonShareTheStreamsPlane(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) }))
	agent, err := url.Parse(c.agent)
	require.NoError(t, err)
	streams := transport.NewStreamProxyTransport()
	defer streams.CloseIdleConnections()
	ask := func(id string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/", nil)
		require.NoError(t, err)
		res, err := NewDaemonTransport(streams, AgentTarget{URL: agent, Token: token}, id).RoundTrip(r)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode, string(body)
	}
	code, first := ask("abc")
	assert.Equal(t, http.StatusOK, code)
	_, second := ask("abc")
	assert.Equal(t, first, second, "one connection")
	code, body := ask("gone")
	assert.Equal(t, http.StatusBadGateway, code)
	assert.JSONEq(t, `{"sandboxId":"gone","message":"The sandbox was not found","code":502}`, body)
}
