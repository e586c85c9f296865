package controlplane

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

func startWithAgent(t *testing.T, settings ...setting) (*plane, *standIn) {
	t.Helper()
	a := newStandIn(t, http.NotFoundHandler())
	return startPlane(t, []agentclient.Config{a.config("one")}, settings...), a
}

func TestU01_CreateAnswersWithAUsableSandbox(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.Domain = "wrenn.test:3002" })
	for _, tc := range []struct {
		path    string
		timeout any
		want    time.Duration
	}{
		{"/sandboxes", nil, 15 * time.Second},
		{"/v2/sandboxes", nil, 300 * time.Second},
		{"/sandboxes", 60, time.Minute},
		{"/v2/sandboxes", 2592000, 720 * time.Hour},
	} {
		body := map[string]any{"templateID": "base:latest", "envVars": map[string]string{"A": "b=c"}, "metadata": map[string]string{"k": "v"}, "allow_internet_access": false, "cpuCount": 3}
		if tc.timeout != nil {
			body["timeout"] = tc.timeout
		}
		var sb sandboxReply
		p.do("POST", tc.path, body).into(t, http.StatusCreated, &sb)
		assert.Regexp(t, regexp.MustCompile(`^i[a-z0-9]{20}$`), sb.SandboxID)
		assert.Equal(t, "base", sb.TemplateID)
		assert.Equal(t, "0.6.13", sb.EnvdVersion)
		assert.Regexp(t, regexp.MustCompile(`^[0-9a-f]{64}$`), sb.EnvdAccessToken)
		assert.NotEqual(t, sb.EnvdAccessToken, sb.TrafficAccessToken)
		assert.Equal(t, "wrenn.test:3002", *sb.Domain)
		assert.Equal(t, "cold", sb.Wrenn.BootPath)
		assert.Equal(t, []bootStage{{"slot", 1.5}, {"kernel", 1000}}, sb.Wrenn.Stages)
		assert.Positive(t, sb.Wrenn.TotalMs)

		a.with(func() {
			req := a.requests[sb.SandboxID]
			assert.Equal(t, tc.want, req.GetTimeout().AsDuration(), tc.path)
			assert.Equal(t, sb.EnvdAccessToken, req.GetEnvdAccessToken())
			assert.Equal(t, map[string]string{"A": "b=c"}, req.GetEnvVars())
			assert.False(t, req.GetNetwork().GetAllowInternet())
			assert.EqualValues(t, 3, req.GetVcpus())
		})
		var detail sandboxDetail
		p.do("GET", "/sandboxes/"+sb.SandboxID, nil).into(t, http.StatusOK, &detail)
		assert.Equal(t, map[string]string{"k": "v"}, detail.Metadata)
		assert.Equal(t, store.Running, detail.State)
		assert.False(t, detail.AllowInternet)
		assert.Equal(t, "kill", detail.Lifecycle.OnTimeout)
		assert.EqualValues(t, 3, detail.CPUCount)
		assert.Equal(t, tc.want, detail.EndAt.Sub(detail.StartedAt))
	}
}

func TestU01_TimeoutRefreshAndConnectMoveTheEnd(t *testing.T) {
	p, _ := startWithAgent(t)
	id := p.create(map[string]any{"timeout": 100}).SandboxID
	left := func() time.Duration {
		var detail sandboxDetail
		p.do("GET", "/sandboxes/"+id, nil).into(t, http.StatusOK, &detail)
		return time.Until(detail.EndAt)
	}
	near := func(want time.Duration) { t.Helper(); assert.InDelta(t, want, left(), float64(wait)) }

	require.Equal(t, http.StatusNoContent, p.do("POST", "/sandboxes/"+id+"/timeout", `{"timeout":500}`).code)
	near(500 * time.Second)
	require.Equal(t, http.StatusNoContent, p.do("POST", "/sandboxes/"+id+"/timeout", `{"timeout":200}`).code)
	near(200 * time.Second) // may shorten
	require.Equal(t, http.StatusNoContent, p.do("POST", "/sandboxes/"+id+"/refreshes", nil).code)
	near(200 * time.Second) // never shortens
	require.Equal(t, http.StatusNoContent, p.do("POST", "/sandboxes/"+id+"/refreshes", `{"duration":3600}`).code)
	near(time.Hour)

	var sb sandboxReply
	p.do("POST", "/sandboxes/"+id+"/connect", `{"timeout":60}`).into(t, http.StatusOK, &sb)
	near(time.Hour) // never shortens
	assert.Equal(t, id, sb.SandboxID)
	assert.NotEmpty(t, sb.EnvdAccessToken)
	assert.Nil(t, sb.Wrenn)
	assert.Nil(t, sb.Domain)
	p.do("POST", "/v2/sandboxes/"+id+"/connect", `{"timeout":7200}`).into(t, http.StatusOK, &sb)
	near(2 * time.Hour)
	p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).into(t, http.StatusOK, &sb) // an optional body
	near(2 * time.Hour)
}

func TestU01_KillAndUnknownSandboxes(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	require.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
	assert.Empty(t, a.ids())
	assert.Empty(t, p.rows())
	for _, call := range []struct{ method, path, body string }{
		{"GET", "/sandboxes/%s", ""}, {"DELETE", "/sandboxes/%s", ""}, {"POST", "/sandboxes/%s/connect", `{"timeout":5}`},
		{"POST", "/v2/sandboxes/%s/connect", "{}"}, {"POST", "/sandboxes/%s/timeout", `{"timeout":5}`},
		{"POST", "/sandboxes/%s/refreshes", "{}"}, {"GET", "/v2/sandboxes/%s/logs", ""},
	} {
		for _, id := range []string{id, "iunknown"} {
			var body any
			if call.body != "" {
				body = call.body
			}
			message := p.do(call.method, fmt.Sprintf(call.path, id), body).refused(t, http.StatusNotFound)
			assert.Contains(t, message, id, call.path)
		}
	}
}

func TestU01_ASandboxThatItsAgentHasReapedIsGone(t *testing.T) {
	p, a := startWithAgent(t)
	short, long := p.create(map[string]any{"timeout": 1}).SandboxID, p.create(nil).SandboxID
	eventually(t, "the expired sandbox leaves the list", func() bool {
		ids, _ := p.list("")
		return len(ids) == 1 && ids[0] == long
	})
	p.do("GET", "/sandboxes/"+short, nil).into(t, http.StatusOK, &sandboxDetail{}) // the agent still has it
	a.with(func() { delete(a.sandboxes, short) })
	p.do("GET", "/sandboxes/"+short, nil).refused(t, http.StatusNotFound)
	require.Len(t, p.rows(), 1)

	a.with(func() { delete(a.sandboxes, long) })
	p.do("POST", "/sandboxes/"+long+"/timeout", `{"timeout":5}`).refused(t, http.StatusNotFound)
	assert.Empty(t, p.rows())
}

func TestU01_Logs(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	a.with(func() { a.console = []byte("Linux version 6\r\n\nbad \xff byte\nlogin: ") })
	get := func(query string) (messages []string) {
		var out struct{ Logs []logEntry }
		p.do("GET", "/v2/sandboxes/"+id+"/logs"+query, nil).into(t, http.StatusOK, &out)
		for _, e := range out.Logs {
			assert.Equal(t, "info", e.Level)
			assert.False(t, e.Timestamp.IsZero())
			messages = append(messages, e.Message)
		}
		return messages
	}
	assert.Equal(t, []string{"Linux version 6", "bad \uFFFD byte", "login: "}, get(""))
	assert.Equal(t, []string{"login: "}, get("?direction=backward&limit=1"))
	assert.Equal(t, []string{"login: "}, get("?search=login"))
	assert.Empty(t, get("?level=error"))
	assert.Empty(t, get("?cursor=9999999999999"))
	assert.Len(t, get("?cursor=0&level=info&direction=forward"), 3)
}

func TestU01_Templates(t *testing.T) {
	a, b := newStandIn(t, http.NotFoundHandler()), newStandIn(t, http.NotFoundHandler())
	b.templates = []string{"jupyter", "base"}
	p := startPlane(t, []agentclient.Config{a.config("a"), b.config("b")})
	var all []templateReply
	p.do("GET", "/v2/templates", nil).into(t, http.StatusOK, &all)
	require.Len(t, all, 2)
	assert.Equal(t, "base", all[0].TemplateID)
	assert.Equal(t, []string{"jupyter"}, all[1].Aliases)
	var one struct{ TemplateID string }
	p.do("GET", "/templates/aliases/jupyter", nil).into(t, http.StatusOK, &one)
	assert.Equal(t, "jupyter", one.TemplateID)
	p.do("GET", "/templates/aliases/none", nil).refused(t, http.StatusNotFound)

	sb := p.create(map[string]any{"templateID": "jupyter"}) // only b has it
	assert.Equal(t, []string{sb.SandboxID}, b.ids())
}

func TestU01_ManyAtOnce(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 5 * time.Millisecond })
	var mu sync.Mutex
	made := map[string]bool{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			sb := p.create(nil)
			mu.Lock()
			made[sb.SandboxID] = true
			mu.Unlock()
			assert.Equal(t, http.StatusNoContent, p.do("POST", "/sandboxes/"+sb.SandboxID+"/timeout", `{"timeout":100}`).code)
		})
	}
	wg.Wait()
	require.Len(t, made, 20)
	assert.Len(t, a.ids(), 20)
	ids, _ := p.list("")
	assert.Len(t, ids, 20)
	for id := range made {
		wg.Go(func() { assert.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code) })
	}
	wg.Wait()
	assert.Empty(t, a.ids())
	assert.Empty(t, p.rows())
}

func TestU01_PlacementTakesTheLeastLoadedAgent(t *testing.T) {
	a, b := newStandIn(t, http.NotFoundHandler()), newStandIn(t, http.NotFoundHandler())
	a.load = 2
	p := startPlane(t, []agentclient.Config{a.config("a"), b.config("b")})
	for range 4 {
		p.create(nil)
	}
	assert.Len(t, a.ids(), 1)
	assert.Len(t, b.ids(), 3)
	b.close() // the rest goes to the agent that answers
	p.create(nil)
	assert.Len(t, a.ids(), 2)
}

func TestU03_EveryEndpointButHealthNeedsAKey(t *testing.T) {
	p, _ := startWithAgent(t)
	id := p.create(nil).SandboxID
	c, err := newContract(t.Context(), handlersOf(t))
	require.NoError(t, err)
	require.Greater(t, len(c.operations), 20)
	ask := func(method, path, header, value string) reply {
		req, err := http.NewRequestWithContext(t.Context(), method, p.api+path, nil)
		require.NoError(t, err)
		if header != "" {
			req.Header.Set(header, value)
		}
		return p.send(req)
	}
	for _, op := range c.operations {
		path := regexp.MustCompile(`\{\w+\}`).ReplaceAllString(op.route.Path, id)
		if op.open {
			assert.Equal(t, "/health", path)
			assert.Equal(t, http.StatusNoContent, ask("GET", path, "", "").code)
			continue
		}
		for _, wrong := range [][2]string{{"", ""}, {"X-API-KEY", "e2b_" + strings.Repeat("0", 64)}, {"X-API-KEY", p.key + "0"}, {"Authorization", "Basic " + p.key}} {
			ask(op.route.Method, path, wrong[0], wrong[1]).refused(t, http.StatusUnauthorized)
		}
	}
	ask("GET", "/nowhere", "", "").refused(t, http.StatusUnauthorized)
	assert.Equal(t, http.StatusOK, ask("GET", "/v2/sandboxes", "Authorization", "Bearer "+p.key).code)
	assert.Equal(t, http.StatusOK, ask("GET", "/v2/sandboxes", "X-Api-Key", p.key).code)
}

func TestU01_WhatIsNotBuiltSaysSo(t *testing.T) {
	p, _ := startWithAgent(t)
	id := p.create(nil).SandboxID
	for _, call := range [][3]string{
		{"GET", "/sandboxes/" + id + "/metrics?start=1&end=2", "metrics"},
		{"POST", "/v3/templates", "building"}, {"DELETE", "/templates/base%3Adefault", "deleting"},
	} {
		assert.Contains(t, p.do(call[0], call[1], nil).refused(t, http.StatusNotImplemented), call[2])
	}
	for _, field := range []string{
		`"network":{"rules":{"a.test":[]}}`, `"network":{"egressProxy":{"address":"a.test:1"}}`, `"network":{"httpsPorts":[443]}`,
		`"mcp":{"x":{}}`, `"volumeMounts":[{"name":"a","path":"/b"}]`, `"iam":{"x":1}`,
	} {
		p.do("POST", "/v2/sandboxes", `{"templateID":"base",`+field+`}`).refused(t, http.StatusNotImplemented)
	}
	p.create(map[string]any{"autoPause": false, "secure": true, "network": map[string]any{"allowPublicTraffic": true, "denyOut": []string{}}, "autoResume": map[string]any{"enabled": false}})
}

func TestU01_PagesOfOtherOriginsMayCall(t *testing.T) {
	p, _ := startWithAgent(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, p.api+"/v2/sandboxes", nil)
	require.NoError(t, err)
	req.Header.Set("Origin", "https://example.com")
	req.Header.Set("Access-Control-Request-Method", "POST")
	req.Header.Set("Access-Control-Request-Headers", "x-api-key")
	r := p.send(req)
	assert.Equal(t, http.StatusNoContent, r.code)
	assert.Equal(t, "x-api-key", r.header.Get("Access-Control-Allow-Headers"))
	r = p.do("GET", "/v2/sandboxes", nil)
	assert.Equal(t, "*", r.header.Get("Access-Control-Allow-Origin"))
	assert.Contains(t, r.header.Get("Access-Control-Expose-Headers"), "X-Next-Token")
}

// handlersOf returns the handlers of a server that is not run.
func handlersOf(t *testing.T) map[string]handler {
	t.Helper()
	s, err := newServer(t.Context(), Config{}, nil, nil)
	require.NoError(t, err)
	handlers := map[string]handler{}
	for _, op := range s.contract.operations {
		if _, ok := op.route.Operation.Extensions[notYet]; !ok {
			handlers[op.route.Operation.OperationID] = op.handle
		}
	}
	return handlers
}
