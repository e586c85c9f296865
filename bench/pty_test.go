package bench_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/bench/echo"
	"wrenn/bench/ground"
	"wrenn/bench/load"
	"wrenn/bench/samples"
)

// typing is a key every 5 ms, much faster than anyone types, so that a minute of measuring says something of
// the thousandth key; and 5 s without an echo is a terminal that a user has given up.
var typing = echo.Config{Interval: 5 * time.Millisecond, Limit: 5 * time.Second}

// settle is how long a load runs before it is measured beside: queues are full by then, and what is done about them
// has been done.
const settle = 2 * time.Second

// BenchmarkPTY measures how long a keystroke takes to come back, by each design, beside each load, over each
// link. Keys are typed at their pace whether or not earlier ones have come back.
func BenchmarkPTY(b *testing.B) {
	benchmarkPTY(b, ground.New(b, ground.Config{}), "", load.Kinds)
}

// BenchmarkPTYReno is BenchmarkPTY on the slow link where TCP fills queues until they overflow, as most servers'
// does; whether the machine's does depends on its settings (host facts have it).
func BenchmarkPTYReno(b *testing.B) {
	g := ground.New(b, ground.Config{Congestion: "reno"})
	for _, kind := range []load.Kind{load.None, load.Downloads, load.Flood, load.All} {
		for _, d := range ground.Designs {
			runPTY(b, g, g.Slow(), "-reno", d, kind)
		}
	}
}

// BenchmarkPTYBands is BenchmarkPTYReno where the queue of the slow link has bands: what a design's sockets gain by
// having a priority.
func BenchmarkPTYBands(b *testing.B) {
	g := ground.New(b, ground.Config{Congestion: "reno", Bands: true})
	for _, kind := range []load.Kind{load.None, load.Jupyter, load.Downloads, load.All} {
		for _, d := range []ground.Design{ground.Isolated, ground.IsolatedWS, ground.Shared, ground.SSH, ground.SSHSecond, ground.TCPHops} {
			runPTY(b, g, g.Slow(), "-bands", d, kind)
		}
	}
}

// BenchmarkPTYUnpaced is BenchmarkPTY on the slow link where what the client is sent in bulk is left to TCP: beside it,
// the default shows what holding it back is worth.
func BenchmarkPTYUnpaced(b *testing.B) {
	g := ground.New(b, ground.Config{Unpaced: true})
	for _, kind := range []load.Kind{load.Jupyter, load.Downloads, load.All} {
		for _, d := range []ground.Design{ground.Isolated, ground.IsolatedWS} {
			runPTY(b, g, g.Slow(), "-unpaced", d, kind)
		}
	}
}

// BenchmarkPTYSpare is BenchmarkPTY where the guest may send half as much as by default, which leaves two processors
// some time: beside it, the default shows what is the processors' share and what the way's.
func BenchmarkPTYSpare(b *testing.B) {
	g := ground.New(b, ground.Config{Egress: 100_000_000})
	for _, kind := range []load.Kind{load.None, load.Jupyter, load.Downloads, load.All} {
		for _, d := range []ground.Design{ground.Isolated, ground.IsolatedWS, ground.SSHHops, ground.TCPHops} {
			runPTY(b, g, g.Loopback(), "-spare", d, kind)
		}
	}
}

func benchmarkPTY(b *testing.B, g *ground.Ground, suffix string, kinds []load.Kind) {
	for _, link := range []ground.Link{g.Loopback(), g.Slow()} {
		for _, kind := range kinds {
			for _, d := range ground.Designs {
				runPTY(b, g, link, suffix, d, kind)
			}
		}
	}
}

func runPTY(b *testing.B, g *ground.Ground, link ground.Link, suffix string, d ground.Design, kind load.Kind) {
	b.Run(fmt.Sprintf("link=%s/load=%s/design=%s", link.Name+suffix, kind, d.Name), func(b *testing.B) {
		c, err := d.Open(b.Context(), g, link)
		require.NoError(b, err)
		defer c.Close()
		measure(b, c, kind)
	})
}

// measure types b.N keys at a client's terminal beside a load and reports the distribution.
func measure(b *testing.B, c *ground.Client, kind load.Kind) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	typist := open(ctx, b, c, typing.Limit)
	defer typist.Close()
	began := time.Now()
	l, err := c.Start(ctx, kind)
	require.NoError(b, err)
	defer l.Stop()
	if kind != load.None {
		time.Sleep(settle)
	}
	blocked := false
	before, err := l.Tally()
	require.NoError(b, err)
	start := time.Now()
	for b.Loop() {
		if blocked {
			continue
		}
		err := typist.Press()
		blocked = errors.Is(err, echo.ErrBlocked)
		if !blocked {
			require.NoError(b, err)
		}
	}
	if !blocked {
		err := typist.Finish()
		blocked = errors.Is(err, echo.ErrBlocked)
		if !blocked {
			require.NoError(b, err)
		}
	}
	took := time.Since(start).Seconds()
	after, err := l.Tally()
	require.NoError(b, err)
	b.Logf("%d keys in %.1f s, %.1f s with set-up", len(typist.Samples()), took, time.Since(began).Seconds())
	report(b, typist.Samples())
	b.ReportMetric(flag(blocked), "blocked")
	if kind != load.None {
		b.ReportMetric(float64(after.Bytes-before.Bytes)/took/1e6, "load-MB/s")
	}
	if kind == load.Poll || kind == load.All {
		b.ReportMetric(float64(after.Calls-before.Calls)/took, "polls/s")
	}
	if after.Error != "" && !blocked {
		b.Logf("a part of the load has failed: %s", after.Error)
	}
	samples.Write(b, typist.Samples())
}

// open opens a terminal and types a few keys, which makes the connections that typing needs.
func open(ctx context.Context, tb testing.TB, c *ground.Client, limit time.Duration) *echo.Typist {
	tb.Helper()
	terminal, err := c.Terminal(ctx)
	require.NoError(tb, err)
	typist, err := echo.NewTypist(terminal, echo.Config{Interval: typing.Interval, Limit: limit})
	require.NoError(tb, err)
	for range 20 {
		require.NoError(tb, typist.Press())
		require.NoError(tb, typist.Finish())
	}
	typist.Forget()
	return typist
}

func report(b *testing.B, took []time.Duration) {
	for name, q := range map[string]float64{"p10": 0.1, "p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1} {
		b.ReportMetric(float64(echo.Quantile(took, q).Nanoseconds())/1e3, name+"-us")
	}
	b.ReportMetric(0, "ns/op") // the pace, which was chosen
}

func flag(on bool) float64 {
	if on {
		return 1
	}
	return 0
}
