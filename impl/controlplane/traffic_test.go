package controlplane

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
)

// visit asks a sandbox's port by name, with these headers in pairs.
func (p *plane) visit(id string, port int, header ...string) reply {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), "GET", "http://"+p.proxy+"/", nil)
	require.NoError(p.t, err)
	req.Host = fmt.Sprintf("%d-%s.wrenn.test:3002", port, id)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return p.send(req)
}

func TestP08_PrivateTrafficAsksForTheTokenOfTheCreate(t *testing.T) {
	a := newStandIn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, "reached") }))
	p := startPlane(t, []agentclient.Config{a.config("one")})
	sb := p.create(map[string]any{"network": map[string]any{"allowPublicTraffic": false}})
	require.NotEmpty(t, sb.TrafficAccessToken)
	other := p.create(map[string]any{"network": map[string]any{"allowPublicTraffic": false}})
	assert.NotEqual(t, sb.TrafficAccessToken, other.TrafficAccessToken)
	assert.NotEqual(t, sb.TrafficAccessToken, sb.EnvdAccessToken)
	for token, code := range map[string]int{"": 403, other.TrafficAccessToken: 403, sb.EnvdAccessToken: 403, sb.TrafficAccessToken: 200} {
		assert.Equal(t, code, p.visit(sb.SandboxID, 8080, "E2b-Traffic-Access-Token", token).code)
	}
	assert.Equal(t, http.StatusOK, p.visit(sb.SandboxID, 49983).code)
	public := p.create(nil)
	assert.Equal(t, http.StatusOK, p.visit(public.SandboxID, 8080).code)

	// It is described, survives other changes of the network, and is one of the settings that cannot change.
	var d sandboxDetail
	p.do("PUT", "/sandboxes/"+sb.SandboxID+"/network", map[string]any{"denyOut": []string{"198.51.100.0/24"}})
	p.do("GET", "/sandboxes/"+sb.SandboxID, nil).into(t, http.StatusOK, &d)
	assert.False(t, d.Network.AllowPublicTraffic)
	assert.Equal(t, http.StatusForbidden, p.visit(sb.SandboxID, 8080).code)
}

func TestP04_TheMaskOfACreateReachesTheGuest(t *testing.T) {
	a := newStandIn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, r.Host, " ", r.Header.Get("X-Forwarded-Host"))
	}))
	p := startPlane(t, []agentclient.Config{a.config("one")})
	sb := p.create(map[string]any{"network": map[string]any{"maskRequestHost": "localhost:${PORT}"}})
	public := "8080-" + sb.SandboxID + ".wrenn.test:3002"
	assert.Equal(t, "localhost:8080 "+public, p.visit(sb.SandboxID, 8080).body)
	public = strings.Replace(public, "8080", "49983", 1)
	assert.Equal(t, public+" "+public, p.visit(sb.SandboxID, 49983).body)
	var d sandboxDetail
	p.do("GET", "/sandboxes/"+sb.SandboxID, nil).into(t, http.StatusOK, &d)
	assert.Equal(t, "localhost:${PORT}", d.Network.MaskRequestHost)

	for _, mask := range []string{"a b", "a/b", "a\r\nX: y", "http://a", "a:b", "a:", ":80", "a:80:80", "$PORT", "${HOST}", "ä.test", "a@b"} {
		msg := p.do("POST", "/v2/sandboxes", map[string]any{"templateID": "base", "network": map[string]any{"maskRequestHost": mask}}).refused(t, http.StatusBadRequest)
		assert.Contains(t, msg, "network.maskRequestHost", mask)
	}
	for _, mask := range []string{"", "a.test", "127.0.0.1:80", "${PORT}.test", "a.test:${PORT}"} {
		p.create(map[string]any{"network": map[string]any{"maskRequestHost": mask}})
	}
}
