package apps_test

import (
	"context"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/network"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
)

// browser is a tab of a Chromium, and what it has complained of.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	failures []string // requests that were answered with an error, or not at all
	sockets  []string // addresses of WebSockets that were opened
}

// open starts a Chromium without a window. It has a profile of its own and asks nobody but the sandbox.
func open(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1200, 900),
		chromedp.Env("TMPDIR="+harness.Dir(t)), // it leaves a directory there
		chromedp.NoSandbox,                     // root has no user namespaces of its own for it; the pages are the suite's own
		chromedp.Flag("no-proxy-server", true), chromedp.Flag("disable-component-update", true),
	)
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	tab, closeTab := chromedp.NewContext(allocator)
	ctx, cancel := context.WithTimeout(tab, 2*harness.Patience)
	t.Cleanup(func() {
		cancel()
		closeTab()
		end()
	})
	b := &browser{t: t, ctx: ctx}
	t.Cleanup(b.keepScreenshot)
	require.NoError(t, chromedp.Listen(ctx, b.notice))
	return b
}

func (b *browser) notice(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventResponseReceived:
		if e.Response.Status >= 400 {
			b.failures = append(b.failures, e.Response.StatusText+" "+e.Response.URL)
		}
	case *network.EventLoadingFailed:
		if !e.Canceled {
			b.failures = append(b.failures, e.ErrorText)
		}
	case *network.EventWebSocketCreated:
		b.sockets = append(b.sockets, e.URL)
	case *cdpruntime.EventExceptionThrown:
		b.failures = append(b.failures, e.ExceptionDetails.Text)
	}
}

// do performs actions; each waits for what it needs.
func (b *browser) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Do(b.ctx, actions...), "%s; the page is at %s, what failed: %q", what, b.at(), b.failed())
}

// value performs an action that yields something.
func value[T any](b *browser, what string, action chromedp.Action[T]) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, action)
	require.NoError(b.t, err, "%s; the page is at %s, what failed: %q", what, b.at(), b.failed())
	return v
}

// script is what a JavaScript expression yields, or the promise that it is.
func script[T any](b *browser, expression string) T {
	b.t.Helper()
	return value(b, "evaluate "+expression, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// at is the address of the page.
func (b *browser) at() string {
	url, err := chromedp.Run(b.ctx, chromedp.Location())
	if err != nil {
		return err.Error()
	}
	return url
}

// text is what an element says once it is there.
func (b *browser) text(selector string) string {
	b.t.Helper()
	return value(b, "read "+selector, chromedp.Text(chromedp.CSS(selector)))
}

// eventually waits until a JavaScript expression is true.
func (b *browser) eventually(expression string) {
	b.t.Helper()
	value(b, "wait for "+expression, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(harness.Patience)))
}

// failed are the requests that were not answered well, and the scripts that threw.
func (b *browser) failed() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.failures...)
}

func (b *browser) webSockets() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.sockets...)
}

// keepScreenshot shows what a failed test's browser saw.
func (b *browser) keepScreenshot() {
	if !b.t.Failed() {
		return
	}
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Logf("no screenshot: %v", err)
		return
	}
	harness.Artifact(b.t, "screenshot.png", picture)
}
