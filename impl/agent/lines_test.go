package agent

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
)

// standInDaemon answers as a guest's daemon at addr and counts the connections that it has been given, and has.
func standInDaemon(t *testing.T, addr netip.Addr) (taken, open *atomic.Int32, end func()) {
	t.Helper()
	mux := http.NewServeMux()
	for _, route := range []string{"/init", "/freeze"} {
		mux.HandleFunc("POST "+route, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusNoContent)
		})
	}
	taken, open = new(atomic.Int32), new(atomic.Int32)
	return taken, open, serveDaemon(t, addr, mux, func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			taken.Add(1)
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		default:
		}
	})
}

// TestAFreezeGoesByTheConnectionOfTheGuestsStart, and by another where that is not there any more.
func TestAFreezeGoesByTheConnectionOfTheGuestsStart(t *testing.T) {
	addr := netip.MustParseAddr("127.0.73.3")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var guests guestPart
	defer guests.lines.close()
	start := func(died <-chan struct{}) {
		_, err := guests.Init(ctx, addr, sandbox.GuestInit{SetClock: true, Entropy: make([]byte, 32)}, died)
		require.NoError(t, err)
	}
	taken, open, end := standInDaemon(t, addr)
	start(nil)
	require.NoError(t, guests.Freeze(ctx, addr, ""))
	assert.EqualValues(t, 1, taken.Load())
	require.Eventually(t, func() bool { return open.Load() == 0 }, time.Minute, time.Millisecond, "it outlives the freeze")
	require.NoError(t, guests.Freeze(ctx, addr, ""), "once more")
	assert.EqualValues(t, 2, taken.Load())

	// What the machine before this one has left is not met by the next at its address.
	died := make(chan struct{})
	start(died)
	close(died)
	require.NoError(t, guests.Freeze(ctx, addr, ""))
	assert.EqualValues(t, 4, taken.Load())

	// The daemon has ended and is back: its end of the connection is gone.
	start(nil)
	end()
	taken, _, end = standInDaemon(t, addr)
	defer end()
	require.NoError(t, guests.Freeze(ctx, addr, ""))
	assert.EqualValues(t, 1, taken.Load())
}

// TestConnectionsOfMachinesThatEndedAreClosed when the next guest starts, at whatever address.
func TestConnectionsOfMachinesThatEndedAreClosed(t *testing.T) {
	former, next := netip.MustParseAddr("127.0.73.4"), netip.MustParseAddr("127.0.73.5")
	_, open, end := standInDaemon(t, former)
	defer end()
	_, _, endNext := standInDaemon(t, next)
	defer endNext()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var guests guestPart
	defer guests.lines.close()
	start := func(addr netip.Addr, died <-chan struct{}) {
		_, err := guests.Init(ctx, addr, sandbox.GuestInit{}, died)
		require.NoError(t, err)
	}
	died := make(chan struct{})
	start(former, died)
	start(next, nil)
	assert.EqualValues(t, 1, open.Load(), "its machine runs")
	start(former, died)
	require.Eventually(t, func() bool { return open.Load() == 1 }, time.Minute, time.Millisecond, "both are open")
	close(died)
	start(next, nil)
	require.Eventually(t, func() bool { return open.Load() == 0 }, time.Minute, time.Millisecond, "its machine has ended")
}
