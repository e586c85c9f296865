package apps_test

import (
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
)

// TestP09_DirectoryListings follows the links of Python's http.server, which are relative: they lead astray
// where a proxy loses or adds a slash.
func TestP09_DirectoryListings(t *testing.T) {
	a := startApp(t, "nextjs")
	a.Exec(a.box, "/bin/sh", "-ec", `mkdir -p "/tmp/files/sub dir/deep" && echo top >/tmp/files/top.txt && echo bottom >"/tmp/files/sub dir/deep/bottom.txt"`)
	a.run("python3 -m http.server --directory /tmp/files 8000")
	a.awaitPort(8000)

	b := open(t)
	b.do("list the directory", chromedp.Navigate(a.url(8000, "/")))
	b.do("enter a directory", chromedp.Click(`//a[.="sub dir/"]`), chromedp.WaitVisible(`//a[.="deep/"]`))
	b.do("enter one in it", chromedp.Click(`//a[.="deep/"]`), chromedp.WaitVisible(`//a[.="bottom.txt"]`))
	b.do("read a file", chromedp.Click(`//a[.="bottom.txt"]`), chromedp.WaitVisible(`//pre[contains(.,"bottom")]`))
	assert.Equal(t, a.url(8000, "/sub%20dir/deep/bottom.txt"), b.at())

	// Without its slash a directory's links would be those of its parent, so the server redirects.
	b.do("go to a directory without a slash", chromedp.Navigate(a.url(8000, "/sub%20dir")), chromedp.WaitVisible(`//a[.="deep/"]`))
	assert.Equal(t, a.url(8000, "/sub%20dir/"), b.at())
	b.do("follow a link from there", chromedp.Click(`//a[.="deep/"]`), chromedp.WaitVisible(`//a[.="bottom.txt"]`))
	assert.Equal(t, a.url(8000, "/sub%20dir/deep/"), b.at())
	assert.Empty(t, without(b.failed(), "/favicon.ico"))
	a.end()
}

// without leaves out what a browser asks for on its own account.
func without(failures []string, suffix string) []string {
	var rest []string
	for _, f := range failures {
		if len(f) < len(suffix) || f[len(f)-len(suffix):] != suffix {
			rest = append(rest, f)
		}
	}
	return rest
}
