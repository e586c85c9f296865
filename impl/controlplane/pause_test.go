package controlplane

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

func (p *plane) pause(id string) {
	p.t.Helper()
	r := p.do("POST", "/sandboxes/"+id+"/pause", "{}")
	require.Equal(p.t, http.StatusNoContent, r.code, r.body)
}

func TestU01_PauseAndConnect(t *testing.T) {
	p, a := startWithAgent(t)
	made := p.create(map[string]any{"timeout": 60, "metadata": map[string]string{"k": "v"}})
	id := made.SandboxID
	r := p.do("POST", "/sandboxes/"+id+"/pause", "{}")
	require.Equal(t, http.StatusNoContent, r.code, r.body)
	assert.Regexp(t, `^freeze;dur=1\.500, memory;dur=3\.000, store;dur=\d+\.\d{3}, total;dur=\d+\.\d{3}$`, r.header.Get("Server-Timing"))
	assert.Equal(t, isPaused, a.state(id))
	assert.Equal(t, store.Paused, p.detail(id).State)
	assert.Contains(t, p.do("POST", "/sandboxes/"+id+"/pause", nil).refused(t, http.StatusConflict), "paused already")
	assert.Contains(t, p.do("POST", "/sandboxes/"+id+"/timeout", `{"timeout":5}`).refused(t, http.StatusConflict), "paused")
	assert.Contains(t, p.do("POST", "/sandboxes/"+id+"/refreshes", nil).refused(t, http.StatusConflict), "paused")
	p.do("PUT", "/sandboxes/"+id+"/network", "{}").refused(t, http.StatusConflict)

	var sb sandboxReply
	p.do("POST", "/v2/sandboxes/"+id+"/connect", `{"timeout":100}`).into(t, http.StatusCreated, &sb)
	assert.Equal(t, made.EnvdAccessToken, sb.EnvdAccessToken)
	assert.Equal(t, id, sb.SandboxID)
	assert.Equal(t, "restored", sb.Wrenn.BootPath)
	require.Len(t, sb.Wrenn.Stages, 3)
	assert.Positive(t, sb.Wrenn.Stages[2].Ms)
	assert.Equal(t, []bootStage{{"disk", 1.5}, {"load", 3}, {stageStore, sb.Wrenn.Stages[2].Ms}}, sb.Wrenn.Stages)
	assert.Equal(t, isRunning, a.state(id))
	detail := p.detail(id)
	assert.Equal(t, store.Running, detail.State)
	assert.Equal(t, map[string]string{"k": "v"}, detail.Metadata)
	assert.InDelta(t, 100*time.Second, time.Until(detail.EndAt), float64(wait))

	sb = sandboxReply{}
	p.do("POST", "/sandboxes/"+id+"/connect", `{"timeout":10}`).into(t, http.StatusOK, &sb)
	assert.Nil(t, sb.Wrenn)
	assert.Equal(t, detail.EndAt, p.detail(id).EndAt, "connect shortened it")
}

// The default of the first version is 15 s, of the second 300 s; a sandbox that is resumed gets exactly that.
func TestU01_DefaultTimeoutsOfAResume(t *testing.T) {
	p, _ := startWithAgent(t)
	id := p.create(map[string]any{"timeout": 9000}).SandboxID
	for path, want := range map[string]time.Duration{
		"/sandboxes/" + id + "/connect": 15 * time.Second, "/v2/sandboxes/" + id + "/connect": 300 * time.Second, "/sandboxes/" + id + "/resume": 15 * time.Second,
	} {
		p.pause(id)
		require.Equal(t, http.StatusCreated, p.do("POST", path, nil).code)
		assert.InDelta(t, want, time.Until(p.detail(id).EndAt), float64(10*time.Second), path)
	}
}

func TestU01_Resume(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	assert.Contains(t, p.do("POST", "/sandboxes/"+id+"/resume", "{}").refused(t, http.StatusConflict), "running")
	p.pause(id)
	var sb sandboxReply
	p.do("POST", "/sandboxes/"+id+"/resume", `{"timeout":60,"autoPause":true}`).into(t, http.StatusCreated, &sb)
	assert.Equal(t, id, sb.SandboxID)
	assert.Equal(t, "kill", p.detail(id).Lifecycle.OnTimeout, "what becomes of it stays as it was created")
	// Its agent has paused it and the store does not know yet.
	a.pausesByItself(id)
	assert.Equal(t, http.StatusCreated, p.do("POST", "/sandboxes/"+id+"/resume", nil).code)
	assert.Equal(t, isRunning, a.state(id))
}

func TestU01_PauseWithoutMemory(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	for _, tc := range []struct{ pause, connect, want string }{
		{`{"memory":false}`, `{}`, "cold"}, {`{"memory":true}`, `{"memory":true}`, "restored"},
		{`{"memory":null}`, `{"memory":false}`, "cold"}, {``, ``, "restored"},
	} {
		require.Equal(t, http.StatusNoContent, p.do("POST", "/sandboxes/"+id+"/pause", tc.pause).code)
		assert.Equal(t, tc.pause == `{"memory":false}`, p.rows()[0].FilesOnly, tc.pause)
		var sb sandboxReply
		p.do("POST", "/v2/sandboxes/"+id+"/connect", tc.connect).into(t, http.StatusCreated, &sb)
		assert.Equal(t, tc.want, sb.Wrenn.BootPath, "%+v", tc)
		assert.False(t, p.rows()[0].FilesOnly)
	}
	assert.Equal(t, isRunning, a.state(id))
}

func TestU01_PausedSandboxesAreListedAndDoNotAge(t *testing.T) {
	p, a := startWithAgent(t)
	running, paused := p.create(nil).SandboxID, p.create(map[string]any{"timeout": 1}).SandboxID
	p.pause(paused)
	time.Sleep(1100 * time.Millisecond) // past its end
	ids, header := p.list("")
	assert.ElementsMatch(t, []string{running, paused}, ids)
	assert.Equal(t, "1", header.Get("X-Total-Running"))
	for query, want := range map[string][]string{
		"?state=paused": {paused}, "?state=running": {running}, "?state=running,paused": {paused, running}, "?state=running,paused&order=asc": {running, paused},
	} {
		ids, _ := p.list(query)
		assert.Equal(t, want, ids, query)
	}
	first, header := p.list("?limit=1")
	second, end := p.list("?limit=1&nextToken=" + header.Get("X-Next-Token"))
	assert.Equal(t, []string{paused, running}, append(first, second...), "one order over both states")
	assert.Empty(t, end.Get("X-Next-Token"))
	var old []listedSandbox
	p.do("GET", "/sandboxes", nil).into(t, http.StatusOK, &old)
	assert.Len(t, old, 1)
	assert.Equal(t, store.Paused, p.detail(paused).State)

	assert.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+paused, nil).code)
	assert.Equal(t, []string{running}, a.ids())
	p.do("POST", "/v2/sandboxes/"+paused+"/connect", nil).refused(t, http.StatusNotFound)
	p.do("POST", "/sandboxes/"+paused+"/pause", nil).refused(t, http.StatusNotFound)
}

func TestU01_LifecycleIsStoredWithTheSandbox(t *testing.T) {
	p, a := startWithAgent(t)
	for _, tc := range []struct {
		body        map[string]any
		want        lifecycle
		agentWants  [3]bool
		timeoutText string
	}{
		{map[string]any{}, lifecycle{"kill", false}, [3]bool{}, ""},
		{map[string]any{"autoPause": nil, "autoPauseMemory": nil, "autoResume": nil}, lifecycle{"kill", false}, [3]bool{}, ""},
		{map[string]any{"autoPause": true, "autoPauseMemory": true}, lifecycle{"pause", false}, [3]bool{true, false, false}, ""},
		{map[string]any{"autoPause": true, "autoPauseMemory": false}, lifecycle{"pause", false}, [3]bool{true, true, false}, ""},
		{map[string]any{"autoPause": true, "autoResume": map[string]any{"enabled": true}}, lifecycle{"pause", true}, [3]bool{true, false, true}, ""},
		{map[string]any{"autoPause": false, "autoResume": map[string]any{"enabled": true}}, lifecycle{"kill", true}, [3]bool{false, false, true}, ""},
	} {
		id := p.create(tc.body).SandboxID
		a.with(func() {
			l := a.requests[id].GetLifecycle()
			assert.Equal(t, tc.agentWants, [3]bool{l.GetPauseOnTimeout(), l.GetPauseFilesOnly(), l.GetResumeOnTraffic()}, "%+v", tc.body)
		})
		assert.Equal(t, tc.want, p.detail(id).Lifecycle)
		p.pause(id)
		require.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", `{"timeout":7}`).code)
		assert.Equal(t, tc.want, p.detail(id).Lifecycle, "a connect changed it")
	}
	for _, wrong := range []string{`"autoPauseMemory":false`, `"autoPauseMemory":false,"autoPause":false`, `"autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}`} {
		assert.Contains(t, p.do("POST", "/v2/sandboxes", `{"templateID":"base",`+wrong+`}`).refused(t, http.StatusBadRequest), "autoPauseMemory")
	}
}

func TestA02_ASandboxThatItsAgentPausedAtItsEndIsPaused(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(map[string]any{"timeout": 1, "autoPause": true, "autoPauseMemory": false}).SandboxID
	time.Sleep(1100 * time.Millisecond)
	// Its time is over and the agent is at it: it does not leave the list meanwhile.
	a.with(func() { a.sandboxes[id].State = isPausing })
	ids, _ := p.list("")
	assert.Equal(t, []string{id}, ids)
	assert.Equal(t, store.Running, p.detail(id).State)
	a.pausesByItself(id)
	assert.Equal(t, store.Paused, p.detail(id).State)
	row := p.rows()[0]
	assert.Equal(t, store.Paused, row.State)
	assert.True(t, row.FilesOnly, "such a pause keeps files alone")
	assert.Contains(t, p.do("POST", "/sandboxes/"+id+"/pause", nil).refused(t, http.StatusConflict), "paused already")
	require.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
	assert.Equal(t, store.Running, p.detail(id).State)
}

func TestA02_ReconcileLearnsOfPauses(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 20 * time.Millisecond })
	id := p.create(map[string]any{"autoPause": true}).SandboxID
	a.with(func() { a.sandboxes[id].State = isPausing })
	time.Sleep(200 * time.Millisecond) // many rounds
	require.Len(t, p.rows(), 1)
	assert.Equal(t, store.Running, p.rows()[0].State, "a pause may still fail")
	a.pausesByItself(id)
	eventually(t, "the pause is known", func() bool { return p.rows()[0].State == store.Paused })
	time.Sleep(200 * time.Millisecond)
	require.Equal(t, []string{id}, a.ids(), "a paused sandbox is not gone")
	a.with(func() { a.sandboxes[id].State = isResuming })
	time.Sleep(200 * time.Millisecond)
	assert.Equal(t, store.Paused, p.rows()[0].State)
	a.with(func() {
		a.sandboxes[id].State, a.sandboxes[id].Deadline = isRunning, timestamppb.New(time.Now().Add(time.Hour))
	})
	eventually(t, "the resume is known", func() bool { return p.rows()[0].State == store.Running })
	assert.InDelta(t, time.Hour, time.Until(p.rows()[0].EndAt), float64(wait))
}

func TestPausedSandboxesOutliveControlPlaneAndAgent(t *testing.T) {
	p, a := startWithAgent(t)
	other := newStandIn(t, http.NotFoundHandler())
	made := p.create(map[string]any{"autoPause": true})
	id := made.SandboxID
	p.pause(id)
	database, key := p.database, p.key
	p.stop()
	// The other agent would be the less loaded one, and has nothing of it.
	a.with(func() { a.load = 100 })
	p = startPlane(t, []agentclient.Config{other.config("two"), a.config("one")}, func(c *Config) {
		c.Database, c.BootstrapKey, c.ReconcileInterval = database, key, 20*time.Millisecond
	})
	// The agent is away for a while, and answers nonsense while it comes back.
	a.with(func() { a.before = func(string, string) error { return lost() } })
	p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).refused(t, http.StatusServiceUnavailable)
	time.Sleep(200 * time.Millisecond)
	ids, _ := p.list("?state=paused")
	assert.Equal(t, []string{id}, ids)
	a.with(func() { a.before = nil })
	var sb sandboxReply
	p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).into(t, http.StatusCreated, &sb)
	assert.Equal(t, made.EnvdAccessToken, sb.EnvdAccessToken)
	assert.Empty(t, other.ids())
}
