package bench_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/bench/echo"
	"wrenn/bench/ground"
)

// How many of each are kept open: enough that what a program holds anyway does not show.
const (
	idleSockets   = 1000
	idleTerminals = 200
)

// gcWait is how long programs get to take back what making connections has left behind.
const gcWait = 2 * time.Second

// BenchmarkMemory keeps WebSockets and terminals open that say nothing and reports how much more memory the
// control plane and the agent hold, per one of them. It measures once, however many times it is asked to run.
func BenchmarkMemory(b *testing.B) {
	keep := func(name string, n int, open func(ctx context.Context, c *ground.Client) (func(), error)) {
		b.Run("idle="+name, func(b *testing.B) {
			// Each has programs of its own: what another one has left behind would be used again.
			g := ground.New(b, ground.Config{})
			c, err := ground.Isolated.Open(b.Context(), g, g.Loopback())
			require.NoError(b, err)
			defer c.Close()
			one, err := open(b.Context(), c)
			require.NoError(b, err)
			time.Sleep(gcWait)
			controlPlane, agent := resident(b, g.ControlPlane.PID()), resident(b, g.Nodes[0].Agent.PID())
			ends := []func(){one}
			for range n {
				end, err := open(b.Context(), c)
				require.NoError(b, err, "after %d", len(ends))
				ends = append(ends, end)
			}
			time.Sleep(gcWait)
			controlPlane = resident(b, g.ControlPlane.PID()) - controlPlane
			agent = resident(b, g.Nodes[0].Agent.PID()) - agent
			for _, end := range ends {
				end()
			}
			for range b.N { // what is measured does not repeat
			}
			b.ReportMetric(controlPlane/float64(n)/1024, "controlplane-KiB")
			b.ReportMetric(agent/float64(n)/1024, "agent-KiB")
			b.ReportMetric(0, "ns/op")
		})
	}
	keep("websockets", idleSockets, func(ctx context.Context, c *ground.Client) (func(), error) {
		conn, err := c.Door.WebSocket(ctx, "/idle")
		return func() { _ = conn.Close() }, err
	})
	keep("terminals", idleTerminals, func(ctx context.Context, c *ground.Client) (func(), error) {
		terminal, err := c.Terminal(ctx)
		if err != nil {
			return nil, err
		}
		typist, err := echo.NewTypist(terminal, echo.Config{Limit: 30 * time.Second})
		return typist.Close, err
	})
}

// resident is how much memory of its own a process holds, in bytes.
func resident(tb testing.TB, pid int) float64 {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(tb, err)
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			require.NoError(tb, err)
			return kib * 1024
		}
	}
	require.Fail(tb, "no RssAnon", "of process %d", pid)
	return 0
}
