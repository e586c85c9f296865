package apps_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/portproxy"
	"wrenn/impl/portproxy/portproxytest"
	"wrenn/impl/transport"
)

// address is where the host reaches the sandbox.
func (a *app) address() netip.Addr {
	a.t.Helper()
	data, err := os.ReadFile(filepath.Join(a.Dir, "agent/sandboxes", a.box.SandboxID, "journal"))
	require.NoError(a.t, err)
	var journal struct {
		Info struct {
			Slot int `json:"slot"`
		} `json:"info"`
	}
	require.NoError(a.t, json.Unmarshal(data, &journal))
	require.NotZero(a.t, journal.Info.Slot)
	return netip.AddrFrom4([4]byte{10, 11, byte(journal.Info.Slot >> 8), byte(journal.Info.Slot)})
}

// proxy starts a proxy of its own before the sandbox.
func (a *app) proxy(cfg portproxytest.Config) *portproxytest.Chain {
	a.t.Helper()
	cfg.Guest = a.address()
	chain, err := portproxytest.Start(cfg)
	require.NoError(a.t, err)
	a.t.Cleanup(func() { assert.NoError(a.t, chain.Close()) })
	return chain
}

// byName and byPath are what a browser opens at a chain.
func (a *app) byName(c *portproxytest.Chain, path string) string {
	return "http://8000-" + a.box.SandboxID + ".localhost:" + c.Edge[strings.LastIndex(c.Edge, ":")+1:] + path
}

func (a *app) byPath(c *portproxytest.Chain, path string) string {
	return "http://" + c.Agent + "/proxy/" + a.box.SandboxID + "/8000" + path + "?wrenn-ticket=" + portproxy.Ticket(portproxytest.AgentToken, a.box.SandboxID)
}

// TestP09_DirectoryListingsByPathAndWithTheFormerDefects goes through directories below a path, and shows that the
// suite would find what was once wrong: paths that were cleaned, and references that were passed on as they were.
func TestP09_DirectoryListingsByPathAndWithTheFormerDefects(t *testing.T) {
	t.Setenv("WRENN_E2E_VMM", "firecracker")
	a := startApp(t, "nextjs", "--firecracker", harness.Procvmm(t))
	a.Exec(a.box, "/bin/sh", "-ec", `mkdir -p "/tmp/files/sub dir/deep" && echo bottom >"/tmp/files/sub dir/deep/bottom.txt"`)
	a.run("python3 -m http.server --directory /tmp/files 8000")
	a.awaitPort(8000)
	b := open(t)
	arrives := func(url string) bool {
		if err := chromedp.Do(b.ctx, chromedp.Navigate(url)); err != nil {
			return false // such as too many redirects
		}
		return script[bool](b, `[...document.querySelectorAll("a")].some(a => a.textContent === "deep/")`)
	}

	whole := a.proxy(portproxytest.Config{})
	assert.True(t, arrives(a.byName(whole, "/sub%20dir")))
	assert.True(t, arrives(a.byPath(whole, "/sub%20dir")))
	b.do("follow a link below a path", chromedp.Click(`//a[.="deep/"]`), chromedp.WaitVisible(`//a[.="bottom.txt"]`))
	assert.Equal(t, "http://"+whole.Agent+"/proxy/"+a.box.SandboxID+"/8000/sub%20dir/deep/", b.at())
	b.do("read a file", chromedp.Click(`//a[.="bottom.txt"]`), chromedp.WaitVisible(`//pre[contains(.,"bottom")]`))

	joined := a.proxy(portproxytest.Config{JoinPath: true})
	assert.False(t, arrives(a.byName(joined, "/sub%20dir")), "paths that lose their slash are not noticed")
	left := a.proxy(portproxytest.Config{LeaveReferences: true})
	assert.False(t, arrives(a.byPath(left, "/sub%20dir")), "a redirect that leaves its path is not noticed")
	a.end()
}

// TestP09_JupyterByPath drives a notebook server as programs do, by REST and a kernel's WebSocket, below a path.
// (Its pages name their assets from the root, so a browser opens it by name.)
func TestP09_JupyterByPath(t *testing.T) {
	t.Setenv("WRENN_E2E_VMM", "firecracker")
	a := startApp(t, "jupyter", "--firecracker", harness.Procvmm(t))
	a.run("exec jupyter notebook --no-browser --ip=0.0.0.0 --port=8000 --NotebookApp.token= --NotebookApp.allow_remote_access=True --NotebookApp.disable_check_xsrf=True")
	a.awaitPort(8000)
	chain := a.proxy(portproxytest.Config{})
	base := "http://" + chain.Agent + "/proxy/" + a.box.SandboxID + "/8000"
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	rt := transport.NewProxyTransport()
	defer rt.CloseIdleConnections()
	call := func(method, path string) (*http.Response, []byte) {
		req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
		require.NoError(t, err)
		req.Header.Set(transport.AgentTokenHeader, portproxytest.AgentToken)
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp, body
	}
	resp, _ := call(http.MethodGet, "/")
	assert.Equal(t, http.StatusFound, resp.StatusCode)
	assert.Equal(t, "/proxy/"+a.box.SandboxID+"/8000/tree?", resp.Header.Get("Location"))
	resp, body := call(http.MethodPost, "/api/kernels")
	require.Equal(t, http.StatusCreated, resp.StatusCode, "%s", body)
	var kernel struct {
		ID string `json:"id"`
	}
	require.NoError(t, json.Unmarshal(body, &kernel))
	assert.Equal(t, "/proxy/"+a.box.SandboxID+"/8000/api/kernels/"+kernel.ID, resp.Header.Get("Location"))

	ws, _, err := websocket.Dial(ctx, base+"/api/kernels/"+kernel.ID+"/channels", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: rt}, HTTPHeader: http.Header{transport.AgentTokenHeader: {portproxytest.AgentToken}},
	})
	require.NoError(t, err)
	defer ws.CloseNow()
	ws.SetReadLimit(1 << 20)
	require.NoError(t, ws.Write(ctx, websocket.MessageText, []byte(`{"channel":"shell","header":{"msg_id":"1","username":"","session":"s","msg_type":"execute_request","version":"5.3"},`+
		`"parent_header":{},"metadata":{},"buffers":[],"content":{"code":"print(6*7)","silent":false,"store_history":true,"user_expressions":{},"allow_stdin":false}}`)))
	for {
		_, message, err := ws.Read(ctx)
		require.NoError(t, err)
		if bytes.Contains(message, []byte(`"text": "42\n"`)) || bytes.Contains(message, []byte(`"text":"42\n"`)) {
			break
		}
	}
	a.end()
}
