package apps_test

import (
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
)

const notebook = `{"cells":[{"cell_type":"code","execution_count":null,"metadata":{},"outputs":[],"source":["print(6*7)"]}],` +
	`"metadata":{"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"}},"nbformat":4,"nbformat_minor":4}`

// TestP09_Jupyter browses files in a notebook server and runs a cell, whose output comes by a WebSocket.
func TestP09_Jupyter(t *testing.T) {
	a := startApp(t, "jupyter")
	a.Exec(a.box, "/bin/sh", "-ec", `mkdir -p "$HOME/work/sub dir" && printf %s "$1" >"$HOME/work/sub dir/test.ipynb"`, "sh", notebook)
	a.run(`cd ~/work && exec jupyter notebook --no-browser --ip=127.0.0.1 --port=8888 --NotebookApp.token= --NotebookApp.allow_remote_access=True`)
	a.awaitPort(8888)

	b := open(t)
	b.do("open the door", chromedp.Navigate(a.url(8888, "/")), chromedp.WaitVisible(`//a[contains(.,"sub dir")]`))
	assert.Equal(t, a.url(8888, "/tree?"), b.at(), "the redirect to the file browser went astray")
	b.do("enter a directory", chromedp.Click(`//a[contains(.,"sub dir")]`), chromedp.WaitVisible(`//a[contains(.,"test.ipynb")]`))
	assert.Equal(t, a.url(8888, "/tree/sub%20dir"), b.at())

	b.do("open the notebook", chromedp.Navigate(a.url(8888, "/notebooks/sub%20dir/test.ipynb")))
	b.eventually(`window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()`)
	script[bool](b, `Jupyter.notebook.execute_all_cells(), true`)
	b.eventually(`[...document.querySelectorAll(".output_stdout")].some(o => o.textContent.trim() === "42")`)
	assert.NotEmpty(t, b.webSockets(), "the output did not come by a WebSocket")
	a.end()
}
