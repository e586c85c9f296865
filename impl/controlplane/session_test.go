package controlplane

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/session"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// dial opens a WebSocket with headers and subprotocols.
func (p *plane) dial(path string, header http.Header, protocols ...string) (*websocket.Conn, *http.Response, error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), wait)
	defer cancel()
	return websocket.Dial(ctx, "ws"+strings.TrimPrefix(p.api, "http")+path, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: p.client.Transport}, HTTPHeader: header, Subprotocols: protocols,
	})
}

func TestU03_SessionsNeedAKey(t *testing.T) {
	seen := make(chan *http.Request, 10)
	a := newStandIn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Clone(context.Background())
		w.WriteHeader(http.StatusNotFound)
	}))
	p := startPlane(t, []agentclient.Config{a.config("one")})
	sb := p.create(nil)
	path := "/sandboxes/" + sb.SandboxID + "/pty"
	protocols := func(key string) []string { return []string{session.Protocol, session.Protocol + ".key." + key} }

	for name, try := range map[string]struct {
		header    http.Header
		protocols []string
	}{
		"none": {}, "wrong": {http.Header{"X-Api-Key": {"e2b_no"}}, nil}, "wrong subprotocol": {nil, protocols("e2b_no")}, "empty": {nil, protocols("")},
	} {
		_, res, err := p.dial(path, try.header, try.protocols...)
		require.Error(t, err, name)
		require.NotNil(t, res, name)
		assert.Equal(t, http.StatusUnauthorized, res.StatusCode, name)
	}
	for name, try := range map[string]struct {
		header    http.Header
		protocols []string
	}{
		"header": {http.Header{"X-Api-Key": {p.key}}, nil}, "bearer": {http.Header{"Authorization": {"Bearer " + p.key}}, nil},
		"subprotocol": {http.Header{"Origin": {"https://elsewhere.example"}}, protocols(p.key)},
	} {
		conn, res, err := p.dial(path, try.header, try.protocols...)
		require.NoError(t, err, name)
		assert.NotContains(t, res.Header.Get("Sec-Websocket-Protocol"), p.key)
		if try.protocols != nil {
			assert.Equal(t, session.Protocol, conn.Subprotocol())
		}
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		require.NoError(t, conn.Write(ctx, websocket.MessageText, []byte(`{"type":"start"}`)))
		r := <-seen
		assert.Equal(t, "/process.Process/Start", r.URL.Path)
		assert.Equal(t, sb.EnvdAccessToken, r.Header.Get("X-Access-Token"))
		for _, values := range r.Header {
			assert.NotContains(t, strings.Join(values, " "), p.key, "the guest sees the key")
			assert.NotContains(t, strings.Join(values, " "), agentToken, "the guest sees the agent's token")
		}
		_, _, err = conn.Read(ctx) // the guest has answered nonsense
		require.NoError(t, err)
		_, _, err = conn.Read(ctx)
		assert.GreaterOrEqual(t, websocket.CloseStatus(err), session.CloseLost, "%v", err)
		cancel()
	}
	// A key among the subprotocols counts for nothing but a WebSocket.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.api+"/sandboxes/"+sb.SandboxID, nil)
	require.NoError(t, err)
	req.Header.Set("Sec-WebSocket-Protocol", strings.Join(protocols(p.key), ", "))
	p.send(req).refused(t, http.StatusUnauthorized)
}

func TestU01_SessionsThatCannotBe(t *testing.T) {
	a := newStandIn(t, http.NotFoundHandler())
	p := startPlane(t, []agentclient.Config{a.config("one")})
	sb := p.create(nil)
	for _, kind := range []string{"pty", "exec"} {
		path := "/sandboxes/" + sb.SandboxID + "/" + kind
		p.do(http.MethodGet, path, nil).refused(t, http.StatusUpgradeRequired)
		p.do(http.MethodPost, path, nil).refused(t, http.StatusMethodNotAllowed)
		p.do(http.MethodGet, path+"?key="+p.key, nil).refused(t, http.StatusBadRequest)
		_, res, err := p.dial("/sandboxes/nosuch/"+kind, http.Header{"X-Api-Key": {p.key}})
		require.Error(t, err)
		assert.Equal(t, http.StatusNotFound, res.StatusCode)
		_, res, err = p.dial("/sandboxes/No-Such/"+kind, http.Header{"X-Api-Key": {p.key}})
		require.Error(t, err)
		assert.Equal(t, http.StatusBadRequest, res.StatusCode)
	}
}

// TestT04_SessionsEndWithThePlane: a WebSocket is no request that the server's shutdown knows of.
func TestT04_SessionsEndWithThePlane(t *testing.T) {
	a := newStandIn(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server notices that its client has gone once it has read all of it
		<-r.Context().Done()
	}))
	p := startPlane(t, []agentclient.Config{a.config("one")})
	sb := p.create(nil)
	for _, first := range []string{"", `{"type":"start"}`} {
		conn, _, err := p.dial("/sandboxes/"+sb.SandboxID+"/pty", http.Header{"X-Api-Key": {p.key}})
		require.NoError(t, err)
		defer conn.CloseNow()
		if first != "" {
			require.NoError(t, conn.Write(t.Context(), websocket.MessageText, []byte(first)))
		}
	}
	begun := time.Now()
	p.stop()
	assert.Less(t, time.Since(begun), shutdownGrace+wait/2)
	assert.Equal(t, hostagentv1.SandboxState_SANDBOX_STATE_RUNNING, a.sandboxes[sb.SandboxID].GetState())
}
