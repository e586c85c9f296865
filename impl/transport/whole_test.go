package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// counted counts the writes of a connection.
type counted struct {
	*net.TCPConn
	writes *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(p)
}

// TestT07_AKeyIsOneWrite: a short body goes with its header, and all others as they did.
func TestT07_AKeyIsOneWrite(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer srv.Close()
	var dials, writes atomic.Int64
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := DialGuest(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		dials.Add(1)
		return counted{c.(*net.TCPConn), &writes}, nil
	}
	keys, ports := NewGuestStreamTransport(dial), NewGuestPortTransport(dial)
	defer keys.CloseIdleConnections()
	defer ports.CloseIdleConnections()
	post := func(tr *Direct, body io.Reader, length int64, header ...string) (string, error) {
		writes.Store(0)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, io.NopCloser(body))
		require.NoError(t, err)
		r.ContentLength = length
		for _, name := range header {
			r.Header.Set(name, "100-continue")
		}
		res, err := tr.RoundTrip(r)
		if err != nil {
			return "", err
		}
		answer, err := io.ReadAll(res.Body)
		return string(answer), errors.Join(err, res.Body.Close())
	}
	for range 3 {
		answer, err := post(keys, iotest.OneByteReader(strings.NewReader("key")), 3)
		require.NoError(t, err)
		assert.Equal(t, "key", answer)
		assert.Equal(t, int64(1), writes.Load())
	}
	assert.Equal(t, int64(1), dials.Load(), "a connection to the daemon carries one key after the other")

	long := strings.Repeat("x", shortBody+1)
	for name, try := range map[string]func() (string, error){
		"a long one":                     func() (string, error) { return post(keys, strings.NewReader(long), int64(len(long))) },
		"one of unknown length":          func() (string, error) { return post(keys, strings.NewReader(long), -1) },
		"one that waits to be asked":     func() (string, error) { return post(keys, strings.NewReader(long), int64(len(long)), "Expect") },
		"one to a user's own server":     func() (string, error) { return post(ports, strings.NewReader(long), int64(len(long))) },
		"a short one to a user's server": func() (string, error) { return post(ports, strings.NewReader(long[:9]), 9) },
	} {
		answer, err := try()
		require.NoError(t, err, name)
		assert.Equal(t, long[:len(answer)], answer, name)
		assert.Greater(t, writes.Load(), int64(1), name)
	}

	_, err := post(keys, iotest.ErrReader(errors.New("the client has gone")), 3)
	require.ErrorContains(t, err, "the client has gone")
	assert.Zero(t, writes.Load(), "half a request was sent")
	_, err = post(keys, strings.NewReader("ke"), 3)
	require.Error(t, err)
	assert.Zero(t, writes.Load(), "half a request was sent")
}
