// Package streams_test drives terminals, programs and users' ports through whole systems: over which
// connections their bytes travel, who waits for whom, and what outlives what.
package streams_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/need"
	"wrenn/impl/transport"
)

func TestMain(m *testing.M) { harness.Main(m) }

// start starts a control plane and an agent, on a host of its own each, with guests that are up in tens of
// milliseconds.
func start(t *testing.T) *harness.Cluster {
	t.Helper()
	need.Root(t)
	need.Program(t, "iptables", "ip", "unshare")
	need.File(t, "kvm", "/dev/kvm", "the agent looks for it before it tries a Firecracker")
	return harness.StartCluster(t, 1, "--vmm", "firecracker", "--firecracker", harness.Procvmm(t))
}

// reply is a text message of the server.
type reply struct {
	Type, Status, Message string
	PID                   uint32
	Code                  *int
}

// viewer is a WebSocket to a program in a sandbox.
type viewer struct {
	t    *testing.T
	ctx  context.Context
	conn *websocket.Conn
	exec bool
	pid  uint32
	seen strings.Builder
}

// view opens a terminal ("pty") or a program ("exec") as the API's user does, from the control plane's host.
func view(t *testing.T, c *harness.Cluster, box apiclient.Sandbox, kind, first string) *viewer {
	t.Helper()
	v, err := tryView(t, c, box, kind, first)
	require.NoError(t, err)
	return v
}

func tryView(t *testing.T, c *harness.Cluster, box apiclient.Sandbox, kind, first string) (*viewer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), harness.Patience)
	t.Cleanup(cancel)
	tr := transport.NewStreamTransport()
	tr.DialContext = c.Head.DialContext
	t.Cleanup(tr.CloseIdleConnections)
	url := "ws" + strings.TrimPrefix(c.APIURL, "http") + "/sandboxes/" + box.SandboxID + "/" + kind
	conn, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: tr}, Subprotocols: []string{"wrenn.v1", "wrenn.v1.key." + c.APIKey},
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	conn.SetReadLimit(4 << 20)
	v := &viewer{t: t, ctx: ctx, conn: conn, exec: kind == "exec"}
	if err := conn.Write(ctx, websocket.MessageText, []byte(first)); err != nil {
		return nil, err
	}
	r, err := v.next()
	switch {
	case err != nil:
		return nil, err
	case r == nil || r.Type != "started":
		return nil, fmt.Errorf("not started: %+v", r)
	}
	v.pid = r.PID
	return v, nil
}

func (v *viewer) say(text string) {
	v.t.Helper()
	require.NoError(v.t, v.conn.Write(v.ctx, websocket.MessageText, []byte(text)))
}

func (v *viewer) input(data string) {
	v.t.Helper()
	if v.exec {
		data = "\x00" + data
	}
	require.NoError(v.t, v.conn.Write(v.ctx, websocket.MessageBinary, []byte(data)))
}

// next reads one message: output is kept, a text message is returned.
func (v *viewer) next() (*reply, error) {
	kind, data, err := v.conn.Read(v.ctx)
	if err != nil {
		return nil, err
	}
	if kind == websocket.MessageBinary {
		if v.exec {
			data = data[1:]
		}
		v.seen.Write(data)
		return nil, nil
	}
	r := &reply{}
	return r, json.Unmarshal(data, r)
}

// until reads until the output holds what.
func (v *viewer) until(what string) {
	v.t.Helper()
	from := 0
	for !strings.Contains(v.seen.String()[from:], what) {
		from = max(0, v.seen.Len()-len(what))
		r, err := v.next()
		require.NoError(v.t, err, "%q not in %.300q", what, v.seen.String())
		require.Nil(v.t, r, "%q not in %.300q: %+v", what, v.seen.String(), r)
	}
}

// ends reads to the last text message and the close frame after it.
func (v *viewer) ends() (reply, websocket.StatusCode) {
	v.t.Helper()
	last, err := v.rest()
	var closed websocket.CloseError
	require.True(v.t, errors.As(err, &closed), "%v", err)
	return last, closed.Code
}

// rest reads to the end, whatever it is, and returns the last text message.
func (v *viewer) rest() (last reply, err error) {
	for {
		r, err := v.next()
		if r != nil {
			last = *r
		}
		if err != nil {
			return last, err
		}
	}
}

// exits expects the program's end.
func (v *viewer) exits(code int) {
	v.t.Helper()
	r, closed := v.ends()
	require.Equal(v.t, "exit", r.Type, "%+v", r)
	require.Equal(v.t, code, *r.Code)
	require.Equal(v.t, websocket.StatusNormalClosure, closed)
}

func attach(pid uint32) string { return fmt.Sprintf(`{"type":"attach","pid":%d}`, pid) }

// get asks a port of a sandbox through the proxy and returns the answer with its body unread.
func get(t *testing.T, c *harness.Cluster, tr *transport.Direct, box apiclient.Sandbox, port int, path string) (*http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), harness.Patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.SandboxURL+path, nil)
	require.NoError(t, err)
	req.Header.Set("E2b-Sandbox-Id", box.SandboxID)
	req.Header.Set("E2b-Sandbox-Port", strconv.Itoa(port))
	return tr.RoundTrip(req)
}

// browser is a client's pool of connections for users' ports.
func browser(t *testing.T, c *harness.Cluster) *transport.Direct {
	t.Helper()
	tr := transport.NewProxyTransport()
	tr.DialContext = c.Head.DialContext
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// median and worst of measured times.
func median(all []time.Duration) (mid, worst time.Duration) {
	sorted := append([]time.Duration(nil), all...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	return sorted[len(sorted)/2], sorted[len(sorted)-1]
}
