package apps_test

import (
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"

	"wrenn/e2e/harness"
)

// TestP09_NextJS walks through a built Next.js app: pages, assets, client navigation, redirects by its
// configuration and by a page.
func TestP09_NextJS(t *testing.T) {
	a := startApp(t, "nextjs")
	a.run("cd /srv/app && exec node node_modules/next/dist/bin/next start --port 3000")
	a.awaitPort(3000)

	b := open(t)
	b.do("open the home page", chromedp.Navigate(a.url(3000, "/")), chromedp.WaitVisible(chromedp.CSS("#title")))
	assert.Equal(t, "home page", b.text("#title"))
	b.eventually(`document.querySelector("#logo").complete && document.querySelector("#logo").naturalWidth > 0`)
	// The button counts only once the scripts have come and run.
	b.eventually(`(document.querySelector("#counter").click(), !document.querySelector("#counter").textContent.endsWith(" 0"))`)
	b.do("go on within the app", chromedp.Click(chromedp.CSS("#to-about")))
	b.eventually(`document.querySelector("#title").textContent === "about page"`)
	assert.Equal(t, a.url(3000, "/about"), b.at())

	for _, step := range []struct{ from, to, title string }{
		{"/old", "/about", "about page"},
		{"/login", "/about?from=login", "about page"},
		{"/gone/a/b%20c", "/docs/a/b%20c", "docs of a | b c"},
		{"/about/", "/about", "about page"},
	} {
		b.do("follow the redirect of "+step.from, chromedp.Navigate(a.url(3000, step.from)), chromedp.WaitVisible(chromedp.CSS("#title")))
		assert.Equal(t, a.url(3000, step.to), b.at(), step.from)
		assert.Equal(t, step.title, b.text("#title"), step.from)
	}
	b.do("open a page with an encoded slash", chromedp.Navigate(a.url(3000, "/docs/a%2Fb/c")), chromedp.WaitVisible(chromedp.CSS("#title")))
	assert.Equal(t, "docs of a/b | c", b.text("#title"))

	hello := script[map[string]string](b, `fetch("/api/hello").then(r => r.json())`)
	assert.Equal(t, a.url(3000, "/api/hello"), "http://"+hello["host"]+hello["path"], "the app does not know its public name")
	assert.Empty(t, without(b.failed(), "/favicon.ico"))
	a.end()
}

// TestP09_NextJSReloadsLive changes a page's source under a development server; the browser learns of it by
// the server's WebSocket. The server takes minutes to compile a page in an emulated machine, so this guest is
// the template's user space without a machine; proxy and browser do not know.
func TestP09_NextJSReloadsLive(t *testing.T) {
	t.Setenv("WRENN_E2E_VMM", "firecracker")
	a := startApp(t, "nextjs", "--firecracker", harness.Procvmm(t))
	a.run("cd /srv/app && exec node node_modules/next/dist/bin/next dev --port 3000")
	a.awaitPort(3000)

	b := open(t)
	b.do("open the home page", chromedp.Navigate(a.url(3000, "/")), chromedp.WaitVisible(chromedp.CSS("#title")))
	assert.Equal(t, "home page", b.text("#title"))
	script[string](b, `window.mark = "still the same page"`)
	a.Exec(a.box, "sed", "-i", "s/home page/changed page/", "/srv/app/app/page.jsx")
	b.eventually(`document.querySelector("#title").textContent === "changed page"`)
	assert.Equal(t, "still the same page", script[string](b, `window.mark || ""`), "it was reloaded as a whole")
	assert.NotEmpty(t, b.webSockets())
	a.end()
}
