package agent

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/portproxy"
	"wrenn/impl/sandbox"
)

// serveDaemon answers by handler where a guest at addr has its daemon, until end is called. state may be nil.
func serveDaemon(t *testing.T, addr netip.Addr, handler http.Handler, state func(net.Conn, http.ConnState)) (end func()) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr.String(), strconv.Itoa(portproxy.EnvdPort)))
	require.NoError(t, err)
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, ConnState: state}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	return func() {
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	}
}

// TestS05_AClockIsSetUntilItIsKnownToBeRight: a busy guest's daemon says that a timestamp came late by not letting
// processes go on; one that never comes in time does not keep them frozen for good.
func TestS05_AClockIsSetUntilItIsKnownToBeRight(t *testing.T) {
	addr := netip.MustParseAddr("127.0.73.2")
	for thawedAt, want := range map[int32]struct{ inits, thaws int32 }{1: {1, 0}, 3: {3, 0}, clockTries + 1: {clockTries, 1}} {
		var inits, thaws atomic.Int32
		mux := http.NewServeMux()
		mux.HandleFunc("POST /init", func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			assert.Contains(t, string(body), `"wrennThaw":true`)
			if inits.Add(1) == thawedAt {
				w.Header().Set("X-Wrenn-Thawed", "1")
			}
			w.WriteHeader(http.StatusNoContent)
		})
		mux.HandleFunc("POST /unfreeze", func(w http.ResponseWriter, _ *http.Request) {
			thaws.Add(1)
			w.WriteHeader(http.StatusNoContent)
		})
		end := serveDaemon(t, addr, mux, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var guests guestPart
		_, err := guests.Init(ctx, addr, sandbox.GuestInit{SetClock: true, Entropy: make([]byte, 32), Thaw: true}, nil)
		cancel()
		require.NoError(t, err)
		assert.Equal(t, want.inits, inits.Load())
		assert.Equal(t, want.thaws, thaws.Load())
		guests.lines.close()
		end()
	}
}
