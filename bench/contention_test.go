package bench_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/bench/echo"
	"wrenn/bench/ground"
	"wrenn/bench/load"
	"wrenn/e2e/harness"
)

const (
	// slowEcho is the most that a terminal on a busy connection may take in the middle before its user sees
	// it: a tenth of a second.
	slowEcho = 100 * time.Millisecond
	// queued is less than half of what a full queue of the slow link holds, 50 ms, whatever the machine's speed.
	queued = 20 * time.Millisecond
	// betterBy is how many times as long as by connections of its own an echo is waited for before the one
	// connection counts as blocked.
	betterBy = 20
	// keysBeside is how many keys are typed beside a load. At a key every 5 ms that is half a second, and three
	// times as long where the machine is busy.
	keysBeside = 100
)

// TestT07_TerminalsOutliveWhatBlocksOneConnection runs the same loads beside a terminal by both designs, on the
// same link in the same minute. What must differ is the outcome, not a speed.
func TestT07_TerminalsOutliveWhatBlocksOneConnection(t *testing.T) {
	g := ground.New(t, ground.Config{})
	for _, tc := range []struct {
		link ground.Link
		kind load.Kind
	}{{g.Loopback(), load.Unread}, {g.Slow(), load.Unread}} {
		t.Run(tc.link.Name+" "+string(tc.kind), func(t *testing.T) {
			isolated, err := beside(t, g, tc.link, ground.Isolated, tc.kind, typing.Limit)
			require.NoError(t, err, "a terminal of its own connection is blocked by another one's upload")
			limit := max(typing.Limit, betterBy*isolated)
			_, err = beside(t, g, tc.link, ground.Shared, tc.kind, limit)
			require.ErrorIs(t, err, echo.ErrBlocked, "an upload that nobody reads no longer blocks a terminal on its HTTP/2 connection: is it still on one?")
			t.Logf("isolated p50 %v, one connection nothing in %v", isolated, limit)
		})
	}
}

// TestT07_DownloadsDelayTerminalsOnOneConnection: on the slow link the bytes of downloads wait in one socket's
// buffer, and a keystroke's echo behind them.
func TestT07_DownloadsDelayTerminalsOnOneConnection(t *testing.T) {
	g := ground.New(t, ground.Config{Congestion: "reno"}) // every kernel has it, whatever the machine's is
	isolated, err := beside(t, g, g.Slow(), ground.Isolated, load.Flood, typing.Limit)
	require.NoError(t, err)
	slow, err := beside(t, g, g.Slow(), ground.Shared, load.Flood, typing.Limit)
	require.NoError(t, err)
	t.Logf("p50: isolated %v, one connection %v", isolated, slow)
	assert.Greater(t, slow, slowEcho)
}

// TestT07_DownloadsYieldToTerminalsInAPlainQueue: while somebody types, what the same client is sent in bulk is held
// back so that the slow link's queue stays short.
func TestT07_DownloadsYieldToTerminalsInAPlainQueue(t *testing.T) {
	for _, congestion := range []string{"", "reno"} {
		echoBeside := func(unpaced bool) time.Duration {
			g := ground.New(t, ground.Config{Congestion: congestion, Unpaced: unpaced})
			took, err := beside(t, g, g.Slow(), ground.IsolatedWS, load.Flood, typing.Limit)
			require.NoError(t, err)
			return took
		}
		unpaced, paced := echoBeside(true), echoBeside(false)
		t.Logf("p50: left to TCP %v, held back %v", unpaced, paced)
		assert.Greater(t, unpaced-paced, queued, "downloads still make a terminal wait in the link's queue")
	}
}

// TestT07_TerminalsPassDownloadsInAQueueWithBands: where the link's queue has bands, as most hosts' have, a terminal
// does not wait for what is queued there.
func TestT07_TerminalsPassDownloadsInAQueueWithBands(t *testing.T) {
	echoBeside := func(bands bool) time.Duration {
		g := ground.New(t, ground.Config{Congestion: "reno", Bands: bands, Unpaced: true})
		took, err := beside(t, g, g.Slow(), ground.Isolated, load.Flood, typing.Limit)
		require.NoError(t, err)
		return took
	}
	plain, bands := echoBeside(false), echoBeside(true)
	t.Logf("p50: plain queue %v, bands %v", plain, bands)
	assert.Greater(t, plain-bands, queued, "what waits in the link's queue still delays a terminal")
}

// beside returns how long an echo takes beside a load, in the middle, or echo.ErrBlocked.
func beside(t *testing.T, g *ground.Ground, link ground.Link, d ground.Design, kind load.Kind, limit time.Duration) (time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	c, err := d.Open(ctx, g, link)
	require.NoError(t, err)
	defer c.Close()
	typist := open(ctx, t, c, limit)
	defer typist.Close()
	l, err := c.Start(ctx, kind)
	require.NoError(t, err)
	defer l.Stop()
	time.Sleep(settle)
	var failed error
	for i := 0; i < keysBeside && failed == nil; i++ {
		failed = typist.Press()
	}
	if failed == nil {
		failed = typist.Finish()
	}
	if errors.Is(failed, echo.ErrBlocked) {
		return 0, failed
	}
	require.NoError(t, failed)
	return echo.Quantile(typist.Samples(), 0.5), nil
}
