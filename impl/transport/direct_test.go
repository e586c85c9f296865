package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// closer is what all our transports are.
type closer interface {
	http.RoundTripper
	CloseIdleConnections()
}

// connections counts the connections that a server sees for n requests, one after the other.
func connections(t *testing.T, tr closer, n int) int {
	t.Helper()
	peers := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { peers[r.RemoteAddr] = true }))
	defer srv.Close()
	defer tr.CloseIdleConnections()
	for range n {
		req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(req)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
	}
	return len(peers)
}

func TestT02_ConnectionsAreKept(t *testing.T) {
	for name, build := range transports {
		assert.Equal(t, 1, connections(t, build(), 5), name)
	}
	assert.Equal(t, 1, connections(t, NewProxyTransport(), 5))
}

// script is a server that answers each connection as its number says.
func script(t *testing.T, serve func(n int, conn net.Conn, r *bufio.Reader)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(wait))
				serve(n, conn, bufio.NewReader(conn))
			})
		}
	})
	return l.Addr().String()
}

const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// exchangeOne makes one exchange and returns the status and body, or the error.
func exchangeOne(t *testing.T, tr http.RoundTripper, method, addr string, body io.Reader) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+"/", body)
	require.NoError(t, err)
	res, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	return res.StatusCode, string(raw), err
}

func TestDirectRepeatsOnlyWhatMayBeRepeated(t *testing.T) {
	var seen atomic.Int32
	addr := script(t, func(n int, conn net.Conn, r *bufio.Reader) {
		for i := 0; ; i++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			seen.Add(1)
			if n == 1 && i == 1 {
				return // the kept connection breaks just as the second request has come
			}
			_, _ = io.WriteString(conn, fine)
		}
	})
	tr := NewProxyTransport()
	defer tr.CloseIdleConnections()
	for range 2 {
		code, body, err := exchangeOne(t, tr, "GET", addr, nil)
		require.NoError(t, err)
		assert.Equal(t, 200, code)
		assert.Equal(t, "ok", body)
	}
	assert.Equal(t, int32(3), seen.Load(), "the second request was sent twice")

	// A fresh connection that breaks is an error, whatever the method.
	broken := script(t, func(_ int, _ net.Conn, r *bufio.Reader) { seen.Add(1); _, _ = http.ReadRequest(r) })
	seen.Store(0)
	_, _, err := exchangeOne(t, tr, "GET", broken, nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, int32(1), seen.Load())
}

// What changes something goes to a user's server on a connection of its own, where nothing can go wrong that
// makes one wonder; an agent keeps idle connections for longer than its callers do.
func TestDirectSendsChangesOnTheirOwnToServersThatMayClose(t *testing.T) {
	var conns atomic.Int32
	addr := script(t, func(n int, conn net.Conn, r *bufio.Reader) {
		conns.Store(int32(n))
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(conn, fine)
		}
	})
	guest, agent := NewGuestPortTransport(DialGuest), NewStreamProxyTransport()
	defer guest.CloseIdleConnections()
	defer agent.CloseIdleConnections()
	methods := []string{"GET", "POST", "PUT", "DELETE"}
	for i, method := range methods {
		_, _, err := exchangeOne(t, guest, method, addr, strings.NewReader("x")) // a GET with a body, too
		require.NoError(t, err)
		assert.Equal(t, int32(i+1), conns.Load(), method)
	}
	assert.Empty(t, guest.idle.conns, "they only wait")
	before := conns.Load()
	for range 50 { // a connection whose body was still being sent when the answer had come is not kept
		_, _, err := exchangeOne(t, agent, "POST", addr, strings.NewReader("x"))
		require.NoError(t, err)
	}
	assert.Less(t, conns.Load()-before, int32(50), "none was used twice")
}

func TestDirectKeepsNoConnectionThatIsNotClean(t *testing.T) {
	for name, answer := range map[string]string{
		"more than was asked for": fine + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
		"to be closed":            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
		"of 1.0":                  "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
	} {
		var conns atomic.Int32
		addr := script(t, func(n int, conn net.Conn, r *bufio.Reader) {
			conns.Store(int32(n))
			for {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				_, _ = io.WriteString(conn, answer)
			}
		})
		tr := NewProxyTransport()
		for range 3 {
			_, body, err := exchangeOne(t, tr, "GET", addr, nil)
			require.NoError(t, err, name)
			assert.Equal(t, "ok", body, name)
			time.Sleep(10 * time.Millisecond) // what came too much is there now
		}
		assert.Equal(t, int32(3), conns.Load(), name)
		tr.CloseIdleConnections()
	}
}

// Bytes that come while a connection waits would be taken for the next answer.
func TestDirectDropsAConnectionThatSpeaksUnasked(t *testing.T) {
	var conns atomic.Int32
	spoken := make(chan struct{})
	addr := script(t, func(n int, conn net.Conn, r *bufio.Reader) {
		conns.Store(int32(n))
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(conn, fine)
		if n == 1 {
			time.Sleep(50 * time.Millisecond)
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			close(spoken)
		}
		_, _ = r.ReadByte()
	})
	tr := NewProxyTransport()
	defer tr.CloseIdleConnections()
	_, _, err := exchangeOne(t, tr, "GET", addr, nil)
	require.NoError(t, err)
	<-spoken
	time.Sleep(20 * time.Millisecond)
	_, body, err := exchangeOne(t, tr, "GET", addr, nil)
	require.NoError(t, err)
	assert.Equal(t, "ok", body)
	assert.Equal(t, int32(2), conns.Load())
}

// A connection that a user's server has not closed is closed by us, soon.
func TestDirectLetsGuestsConnectionsGo(t *testing.T) {
	gone := make(chan struct{})
	addr := script(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(conn, fine)
		_, _ = r.ReadByte()
		close(gone)
	})
	tr := NewGuestPortTransport(DialGuest)
	_, _, err := exchangeOne(t, tr, "GET", addr, nil)
	require.NoError(t, err)
	select {
	case <-gone:
	case <-time.After(wait):
		assert.Fail(t, "it was kept")
	}
}

func TestDirectSpeaksTLSAndNothingButHTTP1(t *testing.T) {
	l, ca := serveTLS(t, NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })))
	tr := NewProxyTransport()
	tr.TLSClientConfig = &tls.Config{RootCAs: ca, NextProtos: []string{"h2", "http/1.1"}}
	defer tr.CloseIdleConnections()
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+l, nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(req)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, "HTTP/1.1", string(body))
	}
	tr.TLSClientConfig = &tls.Config{}
	tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+l, nil)
	require.NoError(t, err)
	_, err = tr.RoundTrip(req)
	require.ErrorContains(t, err, "certificate")
}

func TestDirectEndsWithItsContext(t *testing.T) {
	asked := make(chan struct{}, 2)
	addr := script(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.URL.Path == "/body" {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
		}
		asked <- struct{}{}
		_, _ = r.ReadByte()
	})
	tr := NewProxyTransport()
	cause := errors.New("no longer wanted")
	for _, path := range []string{"/head", "/body"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		if path == "/head" {
			go func() { <-asked; cancel(cause) }()
		}
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+path, nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(req)
		if path == "/body" {
			require.NoError(t, err)
			cancel(cause)
			_, err = io.ReadAll(res.Body)
			_ = res.Body.Close()
		}
		require.ErrorIs(t, err, cause, path)
	}
}

func TestDirectLeavesAnUpgradedConnectionToItsCaller(t *testing.T) {
	addr := script(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
		_, _ = io.Copy(conn, r)
	})
	tr := NewProxyTransport()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr, nil)
	require.NoError(t, err)
	res, err := tr.RoundTrip(req)
	require.NoError(t, err)
	cancel() // as who dials with a deadline does
	time.Sleep(50 * time.Millisecond)
	conn, ok := res.Body.(io.ReadWriteCloser)
	require.True(t, ok)
	_, err = io.WriteString(conn, " again")
	require.NoError(t, err)
	got := make([]byte, len("hello again"))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	assert.Equal(t, "hello again", string(got))
	require.NoError(t, conn.Close())
}

func TestDirectBoundsTheHeader(t *testing.T) {
	addr := script(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
		line := "X-A: " + strings.Repeat("a", 60_000) + "\r\n"
		for range maxAnswerHead/60_000 + 2 {
			if _, err := io.WriteString(conn, line); err != nil {
				return
			}
		}
	})
	_, _, err := exchangeOne(t, NewProxyTransport(), "GET", addr, nil)
	require.ErrorContains(t, err, "too large")
}
