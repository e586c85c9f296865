package hopserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

const wait = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves handler until the test ends.
func start(t testing.TB, handler http.HandlerFunc, settings ...func(*Server)) (srv *Server, addr string) {
	t.Helper()
	srv = &Server{Handler: handler, HeaderTimeout: wait, IdleTimeout: time.Hour, MaxHeaderBytes: 64 << 10, ErrorLog: log.New(io.Discard, "", 0)}
	for _, set := range settings {
		set(srv)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		assert.NoError(t, srv.Close())
		assert.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
	return srv, l.Addr().String()
}

// client is a connection to a server.
type client struct {
	*net.TCPConn
	t testing.TB
	r *bufio.Reader
}

func connect(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(wait)))
	return &client{TCPConn: conn.(*net.TCPConn), t: t, r: bufio.NewReader(conn)}
}

func (c *client) send(text string) {
	c.t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(c.t, err)
}

// answer reads one answer to a request of that method.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, &http.Request{Method: method})
	require.NoError(c.t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(c.t, err)
	return res, string(body)
}

// closed waits for the end of the connection, and requires that nothing comes before it.
func (c *client) closed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	require.Empty(c.t, rest)
	var network net.Error
	require.False(c.t, errors.As(err, &network) && network.Timeout(), "it is still open")
}

func TestRequestsOfOneConnectionAreServedInOrder(t *testing.T) {
	_, addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
	})
	c := connect(t, addr)
	c.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcPUT /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\nGET /4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	for _, want := range []string{"GET /1 ", "POST /2 abc", "PUT /3 de", "GET /4 "} {
		res, body := c.answer("GET")
		assert.Equal(t, want, body)
		assert.EqualValues(t, len(want), res.ContentLength, "a short body has a length")
		assert.Equal(t, want == "GET /4 ", res.Close)
	}
	c.closed()
}

func TestAClientThatHasGoneEndsItsRequest(t *testing.T) {
	gone := make(chan struct{})
	_, addr := start(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
			close(gone)
		case <-time.After(wait):
		}
	})
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"} {
		gone = make(chan struct{})
		c := connect(t, addr)
		c.send(request)
		time.Sleep(4 * lookEvery) // it is watched by now
		require.NoError(t, c.Close())
		select {
		case <-gone:
		case <-time.After(wait):
			assert.Fail(t, "its handler waits on")
		}
	}
}

// TestAWatchedConnectionServesOn: who sends the next request while a long one is served, or after it, loses nothing.
func TestAWatchedConnectionServesOn(t *testing.T) {
	release := make(chan struct{})
	_, addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			<-release
		}
		assert.NoError(t, r.Context().Err())
		_, _ = io.WriteString(w, r.URL.Path)
	})
	for _, early := range []bool{true, false} {
		c := connect(t, addr)
		c.send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
		time.Sleep(4 * lookEvery)
		if early {
			c.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
			time.Sleep(lookEvery)
		}
		release <- struct{}{}
		_, body := c.answer("GET")
		assert.Equal(t, "/long", body)
		if !early {
			c.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		_, body = c.answer("GET")
		assert.Equal(t, "/next", body)
	}
}

func TestTimeouts(t *testing.T) {
	short := 100 * time.Millisecond
	for name, tc := range map[string]struct {
		set  func(*Server)
		send []string
	}{
		"nothing comes":   {func(s *Server) { s.HeaderTimeout = short }, nil},
		"half a header":   {func(s *Server) { s.HeaderTimeout = short }, []string{"GET / HT"}},
		"nothing follows": {func(s *Server) { s.IdleTimeout = short }, []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := start(t, func(http.ResponseWriter, *http.Request) {}, tc.set)
			c := connect(t, addr)
			for _, s := range tc.send {
				c.send(s)
			}
			if name == "nothing follows" {
				c.answer("GET")
			}
			c.closed()
		})
	}
}

func TestALongAnswerOutlivesEveryTimeout(t *testing.T) {
	_, addr := start(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 24 {
			_, _ = io.WriteString(w, "tick")
			assert.NoError(t, http.NewResponseController(w).Flush())
			time.Sleep(lookEvery / 2)
		}
	}, func(s *Server) { s.HeaderTimeout, s.IdleTimeout = time.Second, time.Second }) // a third of the answer
	c := connect(t, addr)
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	_, body := c.answer("GET")
	assert.Equal(t, strings.Repeat("tick", 24), body)
}

func TestShutdownWaitsForExchangesAndCloseDoesNot(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	srv, addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		select {
		case <-release:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "whole")
	})
	idle, busy := connect(t, addr), connect(t, addr)
	busy.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-begun
	hasty, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, srv.Shutdown(hasty), context.DeadlineExceeded)
	idle.closed()
	_, err := net.Dial("tcp", addr)
	require.Error(t, err, "it listens no longer")
	close(release)
	_, body := busy.answer("GET")
	assert.Equal(t, "whole", body)
	busy.closed()
	require.NoError(t, srv.Shutdown(t.Context()))

	begun = make(chan struct{})
	release = make(chan struct{})
	var l net.Listener
	l, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, srv.Serve(l), http.ErrServerClosed, "it has ended for good")

	srv, addr = start(t, srv.Handler.ServeHTTP)
	cut := connect(t, addr)
	cut.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-begun
	require.NoError(t, srv.Close())
	cut.closed()
}

func TestAHandlerThatPanicsEndsItsConnectionAlone(t *testing.T) {
	var logged bytes.Buffer
	var mu sync.Mutex
	_, addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/abort":
			_, _ = io.WriteString(w, strings.Repeat("x", 2*smallBody))
			panic(http.ErrAbortHandler)
		case "/panic":
			panic("ouch")
		}
	}, func(s *Server) { s.ErrorLog = log.New(lockedWriter{&mu, &logged}, "", 0) })
	for _, path := range []string{"/abort", "/panic", "/"} {
		c := connect(t, addr)
		c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(c.r, nil)
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		assert.Equal(t, path == "/", err == nil, path)
	}
	mu.Lock()
	defer mu.Unlock()
	assert.Contains(t, logged.String(), "ouch")
	assert.Equal(t, 1, strings.Count(logged.String(), "panic serving"), "who aborts has nothing to say")
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestHijackGivesTheConnectionWithWhatWasReadOfIt(t *testing.T) {
	for _, early := range []string{"", "early"} {
		srv, addr := start(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(4 * lookEvery) // so that it is watched
			conn, rw, err := http.NewResponseController(w).Hijack()
			if !assert.NoError(t, err) {
				return
			}
			defer conn.Close()
			assert.NoError(t, r.Context().Err(), "the watch has ended, not the client")
			_, err = w.Write([]byte("x"))
			assert.ErrorIs(t, err, http.ErrHijacked)
			line, err := rw.ReadString('\n')
			assert.NoError(t, err)
			_, _ = conn.Write([]byte("echo " + line))
		})
		c := connect(t, addr)
		c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n" + early)
		time.Sleep(5 * lookEvery)
		soon, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		require.NoError(t, srv.Shutdown(soon), "the connection is no longer the server's")
		c.send(" and late\n")
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "echo "+early+" and late\n", string(all))
	}
}

// TestAListenerThatFailsForAMomentIsAskedAgain: a host that is out of descriptors serves on when it has some.
func TestAListenerThatFailsForAMomentIsAskedAgain(t *testing.T) {
	srv := &Server{Handler: http.NotFoundHandler(), HeaderTimeout: wait, IdleTimeout: wait, MaxHeaderBytes: 1 << 10, ErrorLog: log.New(io.Discard, "", 0)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(&moody{Listener: l, failures: 3}) }()
	res, err := http.Get("http://" + l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	assert.Equal(t, http.StatusNotFound, res.StatusCode)
	http.DefaultClient.CloseIdleConnections()
	require.NoError(t, srv.Close())
	require.ErrorIs(t, <-ended, http.ErrServerClosed)
}

type moody struct {
	net.Listener
	failures int
}

func (m *moody) Accept() (net.Conn, error) {
	if m.failures--; m.failures >= 0 {
		return nil, errors.New("too many open files")
	}
	return m.Listener.Accept()
}
