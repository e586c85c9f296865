package controlplane

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// fail makes the stand-in refuse a call with that error, every time.
func (a *standIn) fail(call string, err error) {
	a.with(func() {
		a.before = func(c, _ string) error {
			if c == call {
				return err
			}
			return nil
		}
	})
}

func TestACreateThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	p, a := startWithAgent(t)
	for _, tc := range []struct {
		code connect.Code
		want int
	}{
		{connect.CodeInvalidArgument, 400}, {connect.CodeNotFound, 404}, {connect.CodeResourceExhausted, 503},
		{connect.CodeUnavailable, 503}, {connect.CodeInternal, 500}, {connect.CodeFailedPrecondition, 409}, {connect.CodeUnknown, 500},
	} {
		a.fail("create", connect.NewError(tc.code, errors.New("the VMM is missing: /usr/bin/firecracker")))
		message := p.do("POST", "/v2/sandboxes", `{"templateID":"base"}`).refused(t, tc.want)
		assert.Equal(t, "the VMM is missing: /usr/bin/firecracker", message)
		assert.Empty(t, p.rows(), tc.code)
		assert.Empty(t, a.ids(), tc.code)
	}
	a.fail("ping", connect.NewError(connect.CodeUnavailable, errors.New("starting")))
	p.do("POST", "/v2/sandboxes", `{"templateID":"base"}`).refused(t, http.StatusServiceUnavailable)
	p.do("GET", "/v2/templates", nil).refused(t, http.StatusServiceUnavailable)
	assert.Empty(t, p.rows())
}

// lost is a reply that does not arrive: the connection breaks after the agent has done its work.
func lost() error { panic(http.ErrAbortHandler) }

func TestACreateWhoseReplyIsLostIsFoundByItsID(t *testing.T) {
	p, a := startWithAgent(t)
	a.with(func() { a.after = func(string, string) error { return lost() } })
	sb := p.create(nil)
	assert.Equal(t, []string{sb.SandboxID}, a.ids())
	require.Len(t, p.rows(), 1)
	assert.Equal(t, store.Running, p.rows()[0].State)
}

func TestACreateThatIsCutOffIsCleanedUpLater(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 20 * time.Millisecond })
	// The sandbox is made, but neither the reply nor anything after it gets through.
	a.with(func() {
		a.after = func(string, string) error {
			a.with(func() { a.before = func(string, string) error { return lost() } })
			return lost()
		}
	})
	p.do("POST", "/v2/sandboxes", `{"templateID":"base"}`).refused(t, http.StatusServiceUnavailable)
	require.Len(t, a.ids(), 1)
	ids, _ := p.list("")
	assert.Empty(t, ids, "a failed create is listed")
	require.Len(t, p.rows(), 1)
	assert.Equal(t, store.Destroying, p.rows()[0].State)

	a.with(func() { a.before, a.after = nil, nil })
	eventually(t, "the leftover is destroyed", func() bool { return len(a.ids()) == 0 && len(p.rows()) == 0 })
}

func TestACreateWhoseClientHangsUpLeavesNothing(t *testing.T) {
	p, a := startWithAgent(t)
	ctx, hangUp := context.WithCancel(t.Context())
	a.with(func() {
		a.before = func(call, _ string) error {
			if call == "create" {
				hangUp()
				time.Sleep(time.Second) // for the control plane's server to notice
			}
			return nil
		}
	})
	req, err := http.NewRequestWithContext(ctx, "POST", p.api+"/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
	require.NoError(t, err)
	req.Header.Set("X-Api-Key", p.key)
	res, err := p.client.Do(req)
	if err == nil {
		require.NoError(t, res.Body.Close())
	}
	require.ErrorIs(t, err, context.Canceled)
	eventually(t, "the sandbox that nobody knows of is destroyed", func() bool { return len(a.ids()) == 0 && len(p.rows()) == 0 })
}

func TestAKillWithoutItsAgentIsRememberedAndCarriedOut(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	a.with(func() { a.before = func(string, string) error { return lost() } })
	p.do("DELETE", "/sandboxes/"+id, nil).refused(t, http.StatusServiceUnavailable)
	p.do("GET", "/sandboxes/"+id, nil).refused(t, http.StatusNotFound)
	p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).refused(t, http.StatusConflict)
	ids, _ := p.list("")
	assert.Empty(t, ids)
	database, key := p.database, p.key
	p.stop()
	a.with(func() { a.before = nil })
	require.Equal(t, []string{id}, a.ids())

	// Another control plane on the same store finishes the work.
	p = startPlane(t, []agentclient.Config{a.config("one")}, func(c *Config) { c.Database, c.BootstrapKey = database, key })
	eventually(t, "the kill is carried out", func() bool { return len(a.ids()) == 0 && len(p.rows()) == 0 })
}

func TestReconcileLeavesAKillUnderWayAlone(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 5 * time.Millisecond })
	id := p.create(nil).SandboxID
	var destroys, during atomic.Int32
	a.with(func() {
		a.before = func(call, _ string) error {
			if call == "destroy" && destroys.Add(1) == 1 {
				time.Sleep(300 * time.Millisecond)
				during.Store(destroys.Load()) // a comparison that saw the sandbox before may end what is gone later
			}
			return nil
		}
	})
	assert.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
	assert.EqualValues(t, 1, during.Load())
}

func TestSandboxesOutliveTheControlPlane(t *testing.T) {
	p, a := startWithAgent(t)
	made := p.create(map[string]any{"metadata": map[string]string{"k": "v"}})
	database, key := p.database, p.key
	p.stop()
	p = startPlane(t, []agentclient.Config{a.config("one")}, func(c *Config) { c.Database, c.BootstrapKey = database, key })
	var sb sandboxReply
	p.do("POST", "/v2/sandboxes/"+made.SandboxID+"/connect", nil).into(t, http.StatusOK, &sb)
	assert.Equal(t, made.EnvdAccessToken, sb.EnvdAccessToken)
	var detail sandboxDetail
	p.do("GET", "/sandboxes/"+made.SandboxID, nil).into(t, http.StatusOK, &detail)
	assert.Equal(t, map[string]string{"k": "v"}, detail.Metadata)
}

func TestReconcileNeedsTwoObservationsBeforeItForgets(t *testing.T) {
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

	// Missing once, there again: nothing happens.
	var gone *hostagentv1.Sandbox
	a.with(func() { gone = a.sandboxes[id]; delete(a.sandboxes, id) })
	seen := round(suspicion{})
	require.Len(t, p.rows(), 1)
	a.with(func() { a.sandboxes[id] = gone })
	seen = round(seen)
	// Missing, then changed by a user in between: the second look does not count.
	a.with(func() { delete(a.sandboxes, id) })
	seen = round(seen)
	_, err = st.Modify(t.Context(), id, func(sb *store.Sandbox) error { sb.EndAt = sb.EndAt.Add(time.Second); return nil })
	require.NoError(t, err)
	seen = round(seen)
	require.Len(t, p.rows(), 1)
	// An agent that cannot list is no witness.
	a.fail("list", connect.NewError(connect.CodeUnavailable, errors.New("reading its journals")))
	for range 3 {
		_, err = s.reconcile(t.Context(), agent, seen)
		require.ErrorIs(t, err, agentclient.ErrUnavailable)
	}
	require.Len(t, p.rows(), 1)
	a.with(func() { a.before = nil })
	// Missing twice.
	round(seen)
	require.Empty(t, p.rows())

	// A stray likewise.
	a.with(func() {
		a.sandboxes["istray"] = &hostagentv1.Sandbox{Id: "istray", State: hostagentv1.SandboxState_SANDBOX_STATE_RUNNING}
	})
	seen = round(suspicion{})
	require.Equal(t, []string{"istray"}, a.ids())
	round(seen)
	require.Empty(t, a.ids())
}

func TestReconcileEndsACreateWhoseControlPlaneDied(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 20 * time.Millisecond })
	st, err := store.Open(t.Context(), p.database)
	require.NoError(t, err)
	defer func() { require.NoError(t, st.Close()) }()
	for id, age := range map[string]time.Duration{"iold": staleCreate + time.Second, "iyoung": staleCreate - time.Minute} {
		require.NoError(t, st.Insert(t.Context(), store.Sandbox{ID: id, Agent: "one", State: store.Creating, CreatedAt: time.Now().Add(-age)}))
		a.with(func() {
			a.sandboxes[id] = &hostagentv1.Sandbox{Id: id, State: hostagentv1.SandboxState_SANDBOX_STATE_RUNNING}
		})
	}
	eventually(t, "the old create is undone", func() bool { return len(p.rows()) == 1 && len(a.ids()) == 1 })
	assert.Equal(t, []string{"iyoung"}, a.ids())
}

func TestReconcileLeavesACreateUnderWayAlone(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 5 * time.Millisecond })
	a.with(func() {
		a.after = func(string, string) error { time.Sleep(300 * time.Millisecond); return nil } // made, not yet answered
	})
	sb := p.create(nil)
	assert.Equal(t, []string{sb.SandboxID}, a.ids())
	ids, _ := p.list("")
	assert.Equal(t, []string{sb.SandboxID}, ids)
}

func TestReconcileFollowsTheAgent(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 20 * time.Millisecond })
	kept, failed := p.create(nil).SandboxID, p.create(nil).SandboxID
	a.with(func() {
		a.sandboxes[failed].State, a.sandboxes[failed].Failure = hostagentv1.SandboxState_SANDBOX_STATE_FAILED, "the VMM died"
		sb := a.sandboxes[kept]
		sb.Deadline.Seconds += durationpb.New(time.Hour).GetSeconds()
	})
	eventually(t, "the failed sandbox is gone everywhere", func() bool { return len(p.rows()) == 1 && len(a.ids()) == 1 })
	eventually(t, "the new end is known", func() bool { return time.Until(p.rows()[0].EndAt) > 30*time.Minute })
}
