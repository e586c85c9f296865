package transport

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBodiesMayBeClosedWhileTheyAreRead: a viewer of a terminal that leaves closes the answer that another goroutine
// waits for. And where it comes to its end in that moment, its connection, which the next exchange may have by
// then, stays whole.
func TestBodiesMayBeClosedWhileTheyAreRead(t *testing.T) {
	url := serve(t, NewProxyServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun")
		_ = http.NewResponseController(w).Flush()
		if r.URL.Path == "/endless" {
			<-r.Context().Done()
		}
	})))
	tr := NewStreamProxyTransport()
	t.Cleanup(tr.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	get := func(path string) io.ReadCloser {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+path, nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(r)
		require.NoError(t, err, "the connection of an earlier exchange was closed under this one")
		_, err = io.ReadFull(res.Body, make([]byte, len("begun")))
		require.NoError(t, err)
		return res.Body
	}
	for _, path := range []string{"/endless", "/short"} {
		for range 200 {
			body := get(path)
			var reader sync.WaitGroup
			reading := make(chan struct{})
			reader.Go(func() {
				close(reading)
				n, err := io.Copy(io.Discard, body)
				assert.Zero(t, n)
				if path == "/endless" {
					assert.Error(t, err)
				}
			})
			<-reading
			require.NoError(t, body.Close())
			reader.Wait()
			_, err := body.Read(make([]byte, 1))
			require.Error(t, err)
		}
	}
}
