package transport

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// slowToEnd is a body whose end the server has long answered when it is known here.
type slowToEnd struct{ io.Reader }

func (slowToEnd) Close() error {
	time.Sleep(50 * time.Millisecond)
	return nil
}

// TestABootConnectionIsKeptHoweverSoonTheAnswerComes: the answer to a request may come before it is known that the
// request has been sent.
func TestABootConnectionIsKeptHoweverSoonTheAnswerComes(t *testing.T) {
	peers := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peers[r.RemoteAddr] = true
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	tr := NewBootTransport()
	defer tr.CloseIdleConnections()
	for range 3 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, slowToEnd{strings.NewReader("settings")})
		require.NoError(t, err)
		res, err := tr.RoundTrip(r)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
	}
	assert.Len(t, peers, 1)
}

// TestABootConnectionWaitsNoLongerThanItsRequest, whatever a guest does that answers what it has not read.
func TestABootConnectionWaitsNoLongerThanItsRequest(t *testing.T) {
	addr := script(t, func(_ int, conn net.Conn, _ *bufio.Reader) {
		_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	tr := NewBootTransport()
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	never, end := io.Pipe()
	defer end.Close()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr, never)
	require.NoError(t, err)
	res, err := tr.RoundTrip(r)
	require.NoError(t, err)
	closed := make(chan error, 1)
	go func() { closed <- res.Body.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(wait):
		require.Fail(t, "it waits for a body that never ends")
	}
}

// TestABodyIsReadOnceItIsKnownThatItIsAskedFor: what a guest is told of the time depends on when it asked.
func TestABodyIsReadOnceItIsKnownThatItIsAskedFor(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	tr := NewBootTransport()
	defer tr.CloseIdleConnections()
	var asked, read atomic.Bool
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() {
		time.Sleep(50 * time.Millisecond)
		asked.Store(true)
	}})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL, readerFunc(func([]byte) (int, error) {
		read.Store(true)
		assert.True(t, asked.Load())
		return 0, io.EOF
	}))
	require.NoError(t, err)
	r.Header.Set("Expect", "100-continue")
	res, err := tr.RoundTrip(r)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	assert.True(t, read.Load())
}
