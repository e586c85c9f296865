package bench_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/bench/echo"
	"wrenn/bench/ground"
	"wrenn/bench/load"
	"wrenn/e2e/harness"
	"wrenn/impl/need"
)

// A person types ten keys a second at most; the guest may be emulated, and its processors are the notebook's.
const (
	notebookPort  = 8889
	notebookKeys  = 100
	notebookPace  = 100 * time.Millisecond
	notebookLimit = time.Minute // in which each key must come back
)

// printing is a cell that prints until it is told to stop, two minutes at most. It clears its output now and then,
// as progress bars do: a browser cannot keep all of it.
const printing = `import os, time
from IPython.display import clear_output
end, n = time.time() + 120, 0
while time.time() < end and not os.path.exists("/tmp/stop"):
    n += 1
    print("line", n, "x" * 100, flush=True)
    if n % 200 == 0: clear_output(wait=True)
`

// TestT07_ATerminalBesideABusyNotebook: in a real guest a kernel of a real Jupyter prints without pause to a real
// browser, its REST API is polled 200 times a second, a download goes on, and then somebody uploads to a program
// that is too busy to read. A terminal stays usable beside all of it; on one HTTP/2 connection with the rest, the
// upload ends it.
func TestT07_ATerminalBesideABusyNotebook(t *testing.T) {
	need.Program(t, "chromium")
	g := ground.New(t, ground.Config{App: "jupyter"})
	cell, err := json.Marshal(printing)
	require.NoError(t, err)
	notebook := `{"cells":[{"cell_type":"code","execution_count":null,"metadata":{},"outputs":[],"source":` + string(cell) + `}],` +
		`"metadata":{"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"}},"nbformat":4,"nbformat_minor":4}`
	g.Exec(g.Box, "sh", "-ec", `mkdir -p "$HOME/work" && printf %s "$1" >"$HOME/work/busy.ipynb" && cd "$HOME/work" &&
		setsid jupyter notebook --no-browser --ip=127.0.0.1 --port=8889 --NotebookApp.token= --NotebookApp.allow_remote_access=True \
		--NotebookApp.allow_origin='*' --NotebookApp.disable_check_xsrf=True --NotebookApp.iopub_msg_rate_limit=1e9 --NotebookApp.iopub_data_rate_limit=1e9 \
		>/tmp/jupyter.log 2>&1 </dev/null &`, "sh", notebook)
	require.Eventually(t, func() bool {
		_, err := g.TryExec(g.Box, "sh", "-c", "curl -s -o /dev/null http://localhost:8889/")
		return err == nil
	}, harness.Patience, time.Second, "no notebook answers")

	for _, d := range []ground.Design{ground.Isolated, ground.Shared} {
		t.Run(d.Name, func(t *testing.T) {
			busy := startBusy(t, g, d)
			busy.measure(t, "a key was lost")
			startLoad(t, busy.client.Door, load.Unread)
			if d.Name == ground.Shared.Name {
				err := busy.typeOn(typing.Limit)
				for end := time.Now().Add(harness.Patience); err == nil && time.Now().Before(end); {
					err = busy.typeOn(typing.Limit) // the upload may not have filled what it fills
				}
				require.ErrorIs(t, err, echo.ErrBlocked, "an upload that nobody reads no longer blocks a terminal on its HTTP/2 connection")
				return
			}
			busy.measure(t, "an upload that nobody reads blocks a terminal")
		})
	}
}

// busyNotebook is a design's client with all that goes on beside its terminal.
type busyNotebook struct {
	g      *ground.Ground
	client *ground.Client
	typist *echo.Typist
	polls  *load.Load // of Jupyter's API
	files  *load.Load // a download
	began  time.Time
}

// startBusy opens a terminal, and then the browser, the polls and the download.
func startBusy(t *testing.T, g *ground.Ground, d ground.Design) *busyNotebook {
	t.Helper()
	b := &busyNotebook{g: g}
	var err error
	b.client, err = d.Open(t.Context(), g, g.Loopback())
	require.NoError(t, err)
	t.Cleanup(b.client.Close)
	terminal, err := b.client.Terminal(t.Context())
	require.NoError(t, err)
	b.typist, err = echo.NewTypist(terminal, echo.Config{Interval: notebookPace, Limit: notebookLimit})
	require.NoError(t, err)
	t.Cleanup(b.typist.Close)

	g.Exec(g.Box, "rm", "-f", "/tmp/stop")
	t.Cleanup(func() {
		_, err := g.TryExec(g.Box, "touch", "/tmp/stop")
		assert.NoError(t, err)
	})
	runCell(t, b.client.Page(t, notebookPort))

	b.began = time.Now()
	b.polls = startLoad(t, load.At{Door: b.client.Port(notebookPort), Path: "/api/status"}, load.Poll)
	b.files = startLoad(t, b.client.Door, load.Download)
	require.Eventually(t, func() bool { return b.polls.Calls() > 0 && b.files.Bytes() > 0 }, harness.Patience, 50*time.Millisecond,
		"neither polls nor a download come through")
	return b
}

func startLoad(t *testing.T, door load.Door, kind load.Kind) *load.Load {
	t.Helper()
	l, err := load.Start(t.Context(), door, kind)
	require.NoError(t, err)
	t.Cleanup(l.Stop)
	return l
}

// runCell opens the notebook in a browser and has it print until the test ends.
func runCell(t *testing.T, page string) {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.UserDataDir(t.TempDir()),
		chromedp.Env("TMPDIR="+harness.Dir(t)), // it leaves a directory there
		chromedp.NoSandbox,                     // root has no user namespaces of its own for it; the pages are the suite's own
		chromedp.Flag("no-proxy-server", true), chromedp.Flag("disable-component-update", true),
	)
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	tab, closeTab := chromedp.NewContext(allocator)
	ctx, cancel := context.WithTimeout(tab, 2*harness.Patience)
	t.Cleanup(func() { cancel(); closeTab(); end() })
	wait := func(expression string) {
		_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(harness.Patience)))
		require.NoError(t, err, "wait for %s", expression)
	}
	require.NoError(t, chromedp.Do(ctx, chromedp.Navigate(page+"/notebooks/busy.ipynb")))
	wait(`window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()`)
	_, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`Jupyter.notebook.execute_all_cells(), true`))
	require.NoError(t, err)
	wait(`[...document.querySelectorAll(".output_stdout")].some(o => /line \d+/.test(o.textContent))`)
}

// typeOn types as a person does; each key must come back within limit, in order.
func (b *busyNotebook) typeOn(limit time.Duration) error {
	b.typist.SetLimit(limit)
	for range notebookKeys {
		if err := b.typist.Press(); err != nil {
			return err
		}
	}
	return b.typist.Finish()
}

// measure types, and at the same time inside the guest, where an echo has nothing to do with how terminals are reached.
func (b *busyNotebook) measure(t *testing.T, failing string) {
	t.Helper()
	var inside []time.Duration
	var out string
	var failed error
	var typing sync.WaitGroup
	typing.Go(func() {
		out, failed = b.g.TryExec(b.g.Box, "/home/user/actor", "typist", "--keys", fmt.Sprint(notebookKeys), "--pace", notebookPace.String())
	})
	err := b.typeOn(notebookLimit)
	typing.Wait()
	require.NoError(t, err, failing)
	require.NoError(t, failed)
	require.NoError(t, json.Unmarshal([]byte(out), &inside))
	require.Len(t, inside, notebookKeys)
	samples := b.typist.Samples()
	require.Len(t, samples, notebookKeys)
	b.typist.Forget()
	require.NoError(t, b.polls.Err())
	require.NoError(t, b.files.Err())
	took := time.Since(b.began).Seconds()
	of := func(samples []time.Duration) string {
		return fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, max %.1f ms", ms(samples, 0.5), ms(samples, 0.99), ms(samples, 1))
	}
	t.Logf("echo %s; inside the guest %s: the transport's share is %.1f ms in the middle; beside it %.0f polls a second were answered of 200, and %.1f MB a second downloaded",
		of(samples), of(inside), ms(samples, 0.5)-ms(inside, 0.5), float64(b.polls.Calls())/took, float64(b.files.Bytes())/took/1e6)
}

func ms(samples []time.Duration, q float64) float64 {
	return float64(echo.Quantile(samples, q)) / float64(time.Millisecond)
}
