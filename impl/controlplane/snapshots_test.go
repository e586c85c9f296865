package controlplane

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// takeSnapshot takes a snapshot; an empty name means none.
func (p *plane) takeSnapshot(id, name string) (sn snapshotReply) {
	p.t.Helper()
	body := map[string]any{}
	if name != "" {
		body["name"] = name
	}
	p.do("POST", "/sandboxes/"+id+"/snapshots", body).into(p.t, http.StatusCreated, &sn)
	return sn
}

// listSnapshots returns the ids that a query lists.
func (p *plane) listSnapshots(query string) (ids []string, header http.Header) {
	p.t.Helper()
	var all []snapshotReply
	r := p.do("GET", "/snapshots"+query, nil)
	r.into(p.t, http.StatusOK, &all)
	ids = []string{}
	for _, sn := range all {
		ids = append(ids, sn.SnapshotID)
	}
	return ids, r.header
}

func TestS09_SandboxesStartFromASnapshot(t *testing.T) {
	a, b := newStandIn(t, http.NotFoundHandler()), newStandIn(t, http.NotFoundHandler())
	b.load = 9
	p := startPlane(t, []agentclient.Config{a.config("a"), b.config("b")})
	source := p.create(map[string]any{"cpuCount": 3}).SandboxID
	r := p.do("POST", "/sandboxes/"+source+"/snapshots", `{"name":"mine"}`)
	var sn snapshotReply
	r.into(t, http.StatusCreated, &sn)
	assert.Regexp(t, `^freeze;dur=1\.500, memory;dur=3\.000, total;dur=`, r.header.Get("Server-Timing"))
	assert.Equal(t, "mine:default", sn.SnapshotID)
	assert.Equal(t, []string{"mine:default"}, sn.Names)
	assert.Equal(t, source, sn.Wrenn.SandboxID)
	assert.Equal(t, "base", sn.Wrenn.TemplateID)
	assert.EqualValues(t, 3, sn.Wrenn.CPUCount)
	assert.WithinDuration(t, time.Now(), sn.Wrenn.CreatedAt, wait)
	assert.Equal(t, store.Running, p.detail(source).State)

	// The other agent would be the less loaded one; the snapshot is where it is.
	a.with(func() { a.load = 100 })
	for _, ref := range []string{"mine", "mine:default", "mine:latest"} {
		var sb sandboxReply
		p.do("POST", "/v2/sandboxes", map[string]any{"templateID": ref, "timeout": 77, "envVars": map[string]string{"A": "b"}, "autoPause": true}).into(t, http.StatusCreated, &sb)
		assert.Equal(t, "restored", sb.Wrenn.BootPath)
		assert.Equal(t, "mine", sb.TemplateID)
		a.with(func() {
			req := a.requests[sb.SandboxID]
			assert.Empty(t, req.GetTemplate())
			assert.Equal(t, a.snapshotName(), req.GetSnapshot())
			assert.Equal(t, sb.EnvdAccessToken, req.GetEnvdAccessToken())
			assert.Equal(t, 77*time.Second, req.GetTimeout().AsDuration())
			assert.Equal(t, "b", req.GetEnvVars()["A"])
			assert.True(t, req.GetLifecycle().GetPauseOnTimeout())
		})
		assert.EqualValues(t, 3, p.detail(sb.SandboxID).CPUCount)
	}
	ids, _ := p.list("?template=mine")
	assert.Len(t, ids, 3)
	p.do("GET", "/templates/aliases/mine", nil).into(t, http.StatusOK, &struct{}{})
	assert.Contains(t, p.do("POST", "/v2/sandboxes", `{"templateID":"mine","cpuCount":2}`).refused(t, http.StatusBadRequest), "cpuCount")
	assert.Contains(t, p.do("POST", "/v2/sandboxes", `{"templateID":"mine","memoryMB":512}`).refused(t, http.StatusBadRequest), "memoryMB")
	p.do("POST", "/v2/sandboxes", `{"templateID":"mine:v2"}`).refused(t, http.StatusNotFound)
	assert.Empty(t, b.ids())

	// It outlives its sandbox and cannot go while others are there.
	require.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+source, nil).code)
	assert.Contains(t, p.do("DELETE", "/templates/mine%3Adefault", nil).refused(t, http.StatusConflict), "in use")
	listed, _ := p.listSnapshots("")
	assert.Equal(t, []string{"mine:default"}, listed)
	for _, id := range ids {
		require.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
	}
	require.Equal(t, http.StatusNoContent, p.do("DELETE", "/templates/mine%3Adefault", nil).code)
	p.do("DELETE", "/templates/mine%3Adefault", nil).refused(t, http.StatusNotFound)
	p.do("POST", "/v2/sandboxes", `{"templateID":"mine"}`).refused(t, http.StatusNotFound)
	assert.Empty(t, a.snapshotIDs())
}

// snapshotName returns the name of the one snapshot that the stand-in has; a.mu is held.
func (a *standIn) snapshotName() (name string) {
	for name = range a.snapshots {
	}
	return name
}

func TestS09_SnapshotNames(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	unnamed := p.takeSnapshot(id, "")
	assert.Regexp(t, regexp.MustCompile(`^s[a-z0-9]{20}:default$`), unnamed.SnapshotID)
	assert.Equal(t, []string{}, unnamed.Names)
	for _, body := range []string{``, `{}`, `{"name":null}`} {
		var sn snapshotReply
		p.do("POST", "/sandboxes/"+id+"/snapshots", body).into(t, http.StatusCreated, &sn)
		assert.Empty(t, sn.Names)
	}
	assert.Equal(t, "mine:v2", p.takeSnapshot(id, "mine:v2").SnapshotID)
	assert.Equal(t, "mine:default", p.takeSnapshot(id, "mine").SnapshotID)
	assert.Equal(t, "mine:default", p.takeSnapshot(id, "mine:latest").SnapshotID)
	assert.Len(t, a.snapshotIDs(), 6, "a name that goes over to another one leaves nothing behind")
	assert.Contains(t, p.do("POST", "/sandboxes/"+id+"/snapshots", `{"name":"base"}`).refused(t, http.StatusConflict), "is a template")
	longest := strings.Repeat("a", 64)
	assert.Equal(t, longest+":default", p.takeSnapshot(id, longest).SnapshotID)

	for _, ref := range []string{unnamed.SnapshotID, strings.TrimSuffix(unnamed.SnapshotID, ":default"), "mine:v2"} {
		sb := p.create(map[string]any{"templateID": ref})
		assert.Equal(t, strings.TrimSuffix(ref, ":default"), sb.TemplateID)
		ids, _ := p.list("?template=" + url.QueryEscape(ref))
		assert.Contains(t, ids, sb.SandboxID)
	}
	// A name is taken over even while sandboxes use what had it.
	child := p.create(map[string]any{"templateID": "mine"}).SandboxID
	p.takeSnapshot(id, "mine")
	assert.Len(t, a.snapshotIDs(), 7)
	assert.Equal(t, "mine", p.takeSnapshot(child, "").Wrenn.TemplateID)
}

func TestS09_SnapshotOfAPausedSandbox(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	p.pause(id)
	p.takeSnapshot(id, "mine")
	assert.Equal(t, isPaused, a.state(id))
	// Its agent is pausing another one by itself.
	id = p.create(nil).SandboxID
	a.with(func() { a.sandboxes[id].State = isPausing })
	time.AfterFunc(100*time.Millisecond, func() { a.pausesByItself(id) })
	p.takeSnapshot(id, "other")
	assert.Equal(t, store.Paused, p.detail(id).State)
	for _, gone := range []string{"iunknown"} {
		p.do("POST", "/sandboxes/"+gone+"/snapshots", "{}").refused(t, http.StatusNotFound)
		p.do("POST", "/sandboxes/"+gone+"/fork", "{}").refused(t, http.StatusNotFound)
	}
}

func TestS09_SnapshotsAreListedPageByPage(t *testing.T) {
	p, _ := startWithAgent(t)
	one, two := p.create(nil).SandboxID, p.create(nil).SandboxID
	var want []string
	for i := range 7 {
		sn := p.takeSnapshot(one, fmt.Sprintf("n%d", i))
		want = append([]string{sn.SnapshotID}, want...)
	}
	var got []string
	for query := "?limit=3"; ; {
		page, header := p.listSnapshots(query)
		got = append(got, page...)
		next := header.Get("X-Next-Token")
		if next == "" {
			break
		}
		assert.Len(t, page, 3)
		query = "?limit=3&nextToken=" + url.QueryEscape(next)
	}
	assert.Equal(t, want, got)
	other, unnamed := p.takeSnapshot(two, "n0:v2").SnapshotID, p.takeSnapshot(two, "").SnapshotID
	for query, want := range map[string][]string{
		"?sandboxID=" + two: {unnamed, other}, "?name=n0": {other, "n0:default"}, "?name=n0%3Av2": {other}, "?name=n0:latest": {"n0:default"},
		"?name=none": {}, "?name=" + strings.TrimSuffix(unnamed, ":default"): {unnamed}, "?sandboxID=" + one + "&name=n0": {"n0:default"}, "?sandboxID=inone": {},
	} {
		ids, header := p.listSnapshots(query)
		assert.Equal(t, want, ids, query)
		assert.Empty(t, header.Get("X-Next-Token"))
	}
}

func TestS09_ASnapshotThatFailsSaysWhy(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	for code, want := range map[connect.Code]int{
		connect.CodeResourceExhausted: 503, connect.CodeInternal: 500, connect.CodeUnimplemented: 501, connect.CodeFailedPrecondition: 409,
	} {
		a.fail("snapshot", connect.NewError(code, errors.New("no room for 512 MiB")))
		assert.Equal(t, "no room for 512 MiB", p.do("POST", "/sandboxes/"+id+"/snapshots", nil).refused(t, want))
		assert.Equal(t, "no room for 512 MiB", p.do("POST", "/sandboxes/"+id+"/fork", nil).refused(t, want))
	}
	a.with(func() { a.before, a.after = nil, func(string, string) error { return lost() } })
	assert.Equal(t, "mine:default", p.takeSnapshot(id, "mine").SnapshotID, "its reply was lost")
	p.do("DELETE", "/templates/mine", nil).refused(t, http.StatusServiceUnavailable)
	a.with(func() { a.after = nil })
	assert.Equal(t, http.StatusNoContent, p.do("DELETE", "/templates/mine", nil).code, "the repetition of a delete whose reply was lost")
	p.do("DELETE", "/templates/mine", nil).refused(t, http.StatusNotFound)
	assert.Equal(t, store.Running, p.detail(id).State)
}

func TestS09_Fork(t *testing.T) {
	p, a := startWithAgent(t)
	source := p.create(map[string]any{
		"metadata": map[string]string{"k": "v"}, "autoPause": true, "autoResume": map[string]any{"enabled": true}, "timeout": 900,
		"network": map[string]any{"denyOut": []string{"192.0.2.0/24"}},
	})
	end := p.detail(source.SandboxID).EndAt
	for _, tc := range []struct {
		body    string
		count   int
		timeout time.Duration
	}{{``, 1, 15 * time.Second}, {`{"count":null}`, 0, 0}, {`{"timeout":500,"count":20}`, 20, 500 * time.Second}} {
		r := p.do("POST", "/sandboxes/"+source.SandboxID+"/fork", tc.body)
		if tc.count == 0 {
			r.refused(t, http.StatusBadRequest)
			continue
		}
		var results []forkResult
		r.into(t, http.StatusCreated, &results)
		assert.Contains(t, r.header.Get("Server-Timing"), "memory;dur=")
		require.Len(t, results, tc.count)
		seen := map[string]bool{source.SandboxID: true}
		for _, res := range results {
			require.Nil(t, res.Error)
			assert.False(t, seen[res.Sandbox.SandboxID])
			seen[res.Sandbox.SandboxID] = true
			assert.NotEqual(t, source.EnvdAccessToken, res.Sandbox.EnvdAccessToken)
			assert.Equal(t, "base", res.Sandbox.TemplateID)
			assert.Equal(t, "restored", res.Sandbox.Wrenn.BootPath)
			d := p.detail(res.Sandbox.SandboxID)
			assert.Equal(t, map[string]string{"k": "v"}, d.Metadata)
			assert.Equal(t, lifecycle{"pause", true}, d.Lifecycle)
			assert.Equal(t, []string{"192.0.2.0/24"}, d.Network.DenyOut)
			assert.InDelta(t, tc.timeout, time.Until(d.EndAt), float64(wait))
		}
	}
	assert.Empty(t, a.snapshotIDs(), "what forks start from does not stay")
	listed, _ := p.listSnapshots("")
	assert.Empty(t, listed)
	assert.Equal(t, end, p.detail(source.SandboxID).EndAt)
	assert.Len(t, a.ids(), 22)
}

func TestS09_EachForkSucceedsOrFailsByItself(t *testing.T) {
	p, a := startWithAgent(t)
	source := p.create(nil).SandboxID
	var mu sync.Mutex
	n := 0
	a.with(func() {
		a.before = func(call, _ string) error {
			mu.Lock()
			defer mu.Unlock()
			if call == "create" {
				if n++; n%3 == 0 {
					return connect.NewError(connect.CodeResourceExhausted, errors.New("no free slot"))
				}
			}
			return nil
		}
	})
	var results []forkResult
	p.do("POST", "/sandboxes/"+source+"/fork", `{"count":9}`).into(t, http.StatusCreated, &results)
	failed := 0
	for _, res := range results {
		assert.NotEqual(t, res.Error == nil, res.Sandbox == nil)
		if res.Error != nil {
			failed++
			assert.Equal(t, forkError{503, "no free slot"}, *res.Error)
		}
	}
	assert.Equal(t, 3, failed)
	assert.Len(t, p.rows(), 7)
	assert.Len(t, a.ids(), 7)
	assert.Empty(t, a.snapshotIDs())
}

func TestS09_AForkWhoseClientHangsUpLeavesNothing(t *testing.T) {
	p, a := startWithAgent(t)
	source := p.create(nil).SandboxID
	req, err := http.NewRequestWithContext(t.Context(), "POST", p.api+"/sandboxes/"+source+"/fork", strings.NewReader(`{"count":3}`))
	require.NoError(t, err)
	req.Header.Set("X-Api-Key", p.key)
	impatient := *p.client
	impatient.Timeout = 300 * time.Millisecond
	a.with(func() {
		a.before = func(call, _ string) error {
			if call == "create" {
				time.Sleep(time.Second)
			}
			return nil
		}
	})
	res, err := impatient.Do(req)
	if err == nil {
		require.NoError(t, res.Body.Close())
	}
	require.Error(t, err)
	eventually(t, "only the source is left", func() bool { return len(a.ids()) == 1 && len(p.rows()) == 1 && len(a.snapshotIDs()) == 0 })
}

func TestReconcileSnapshots(t *testing.T) {
	p, a := startWithAgent(t)
	st, err := store.Open(t.Context(), p.database)
	require.NoError(t, err)
	defer func() { require.NoError(t, st.Close()) }()
	agent, err := agentclient.New(a.config("one"))
	require.NoError(t, err)
	defer agent.Close()
	s := &server{cfg: Config{Logger: p.logger()}, store: st, agents: []*agentclient.Client{agent}}
	round := func(before suspicion) suspicion {
		now, err := s.reconcile(t.Context(), agent, before)
		require.NoError(t, err)
		return now
	}
	id := p.create(nil).SandboxID
	kept, gone := p.takeSnapshot(id, "kept"), p.takeSnapshot(id, "gone")
	row, err := st.FindSnapshot(t.Context(), "gone", "default")
	require.NoError(t, err)
	listed := func() []string { ids, _ := p.listSnapshots(""); return ids }

	// Missing once, there again, missing twice.
	var taken *hostagentv1.Snapshot
	a.with(func() { taken = a.snapshots[row.ID]; delete(a.snapshots, row.ID) })
	seen := round(suspicion{})
	a.with(func() { a.snapshots[row.ID] = taken })
	seen = round(seen)
	a.with(func() { delete(a.snapshots, row.ID) })
	seen = round(seen)
	assert.Equal(t, []string{gone.SnapshotID, kept.SnapshotID}, listed())
	// An agent that cannot list, or is too old to, is no witness.
	for code, fails := range map[connect.Code]bool{connect.CodeUnavailable: true, connect.CodeUnimplemented: false} {
		a.fail("list snapshots", connect.NewError(code, errors.New("no")))
		_, err = s.reconcile(t.Context(), agent, seen)
		assert.Equal(t, fails, err != nil)
	}
	assert.Len(t, listed(), 2)
	a.with(func() { a.before = nil })
	round(seen)
	assert.Equal(t, []string{kept.SnapshotID}, listed())

	// What nobody knows of is left alone for long, then gets a row; a fork's goes.
	a.with(func() {
		a.snapshots["sfound"] = &hostagentv1.Snapshot{Name: "sfound", SandboxId: id, Template: "base", MemoryMib: 7}
		a.snapshots["fork-i1"] = &hostagentv1.Snapshot{Name: "fork-i1", SandboxId: id}
	})
	seen = round(round(suspicion{}))
	assert.Len(t, a.snapshotIDs(), 3)
	assert.Len(t, listed(), 1)
	for name, at := range seen.straySnapshots {
		seen.straySnapshots[name] = at.Add(-straySnapshot)
	}
	round(seen)
	assert.Equal(t, []string{"sfound:default", kept.SnapshotID}, listed())
	assert.Len(t, a.snapshotIDs(), 2)
	assert.Equal(t, "restored", p.create(map[string]any{"templateID": "sfound"}).Wrenn.BootPath)
}
