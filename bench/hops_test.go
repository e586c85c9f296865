package bench_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/bench/ground"
	"wrenn/bench/load"
)

// BenchmarkHops tells where the time of an idle echo goes: each step adds one part to the way of the one
// before it. The differences of their medians are the parts' shares.
func BenchmarkHops(b *testing.B) {
	g := ground.New(b, ground.Config{})
	opened := func(d ground.Design) func() (*ground.Client, error) {
		return func() (*ground.Client, error) { return d.Open(b.Context(), g, g.Loopback()) }
	}
	for _, step := range []struct {
		name string
		open func() (*ground.Client, error)
	}{
		{"1-tcp", opened(ground.TCP)},
		{"2-tcp-guest", g.TCPGuest},
		{"3-tcp-hops", opened(ground.TCPHops)},
		{"4-tcp-hops-terminal", func() (*ground.Client, error) { return g.TCPTerminal(g.Loopback()) }},
		{"5-envd", g.ToEnvd},
		{"6-envd-agent", g.ToAgent},
		{"7-envd-agent-controlplane", opened(ground.Isolated)},
		{"8-envd-agent-websocket", opened(ground.IsolatedWS)},
	} {
		b.Run("way="+step.name, func(b *testing.B) {
			c, err := step.open()
			require.NoError(b, err)
			defer c.Close()
			measure(b, c, load.None)
		})
	}
}

// BenchmarkPTYFirstByte makes terminals, one after the other, and waits for the first byte of each: what a user
// waits for who opens one. "cold" makes new connections from the client each time.
func BenchmarkPTYFirstByte(b *testing.B) {
	g := ground.New(b, ground.Config{})
	for _, d := range []ground.Design{ground.Isolated, ground.Shared, ground.SSH, ground.WebTTY} {
		for _, state := range []string{"cold", "warm"} {
			if d.Name == ground.SSH.Name && state == "warm" {
				continue // each program makes a connection of its own
			}
			b.Run("design="+d.Name+"/connections="+state, func(b *testing.B) { firstByte(b, g, d, state == "cold") })
		}
	}
}

func firstByte(b *testing.B, g *ground.Ground, d ground.Design, cold bool) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	c, err := d.Open(ctx, g, g.Loopback())
	require.NoError(b, err)
	newTerminal(ctx, b, c) // so that a warm one's connections are there
	var took []time.Duration
	for b.Loop() {
		if cold {
			c.Close()
			c, err = d.Open(ctx, g, g.Loopback())
			require.NoError(b, err)
		}
		took = append(took, newTerminal(ctx, b, c))
	}
	c.Close()
	report(b, took)
}

// newTerminal returns how long a new terminal takes to say something, and ends it.
func newTerminal(ctx context.Context, b *testing.B, c *ground.Client) time.Duration {
	began := time.Now()
	terminal, err := c.Terminal(ctx)
	require.NoError(b, err)
	_, err = terminal.Read(make([]byte, 1))
	took := time.Since(began)
	require.NoError(b, err)
	_ = terminal.Close() // ssh's is killed
	return took
}
