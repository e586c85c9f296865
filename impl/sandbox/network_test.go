package sandbox_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/egress"
	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
)

func policyOf(t *testing.T, r egress.Rules) sandbox.NetworkPolicy {
	t.Helper()
	p, err := r.Policy()
	require.NoError(t, err)
	return p
}

var (
	firstRules  = egress.Rules{AllowInternet: true, DenyOut: []string{"192.0.2.0/24"}}
	secondRules = egress.Rules{AllowOut: []string{"example.com", "198.51.100.7"}, DenyOut: []string{"0.0.0.0/0"}}
)

func withRules(id string, r egress.Rules) sandbox.CreateRequest {
	req := request(id)
	req.AllowInternet, req.AllowOut, req.DenyOut = r.AllowInternet, r.AllowOut, r.DenyOut
	return req
}

func TestN09_RulesAtCreateAndAtRunTime(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m := newManager(t, cfg)
	info, err := m.Create(t.Context(), withRules("a", firstRules))
	require.NoError(t, err)
	assert.Equal(t, firstRules, info.Network)
	assert.Equal(t, policyOf(t, firstRules), h.Policy(info.Slot))

	require.NoError(t, m.SetNetwork(t.Context(), "a", secondRules))
	assert.Equal(t, policyOf(t, secondRules), h.Policy(info.Slot))
	info, err = m.Get("a")
	require.NoError(t, err)
	assert.Equal(t, secondRules, info.Network)
	info.Network.AllowOut[0] = "changed"
	again, err := m.Get("a")
	require.NoError(t, err)
	assert.Equal(t, secondRules, again.Network, "a copy shares its lists")

	wrong := egress.Rules{AllowInternet: true, AllowOut: []string{"example.com"}}
	err = m.SetNetwork(t.Context(), "a", wrong)
	require.ErrorIs(t, err, sandbox.ErrInvalid)
	require.ErrorContains(t, err, "network.allowOut")
	_, err = m.Create(t.Context(), withRules("b", wrong))
	require.ErrorIs(t, err, sandbox.ErrInvalid)
	require.ErrorContains(t, err, "network.allowOut")
	require.ErrorIs(t, m.SetNetwork(t.Context(), "none", firstRules), sandbox.ErrNotFound)
	require.ErrorIs(t, m.SetNetwork(t.Context(), "../x", firstRules), sandbox.ErrInvalid)
	require.True(t, h.Crash("a"))
	require.Eventually(t, func() bool {
		return errors.Is(m.SetNetwork(t.Context(), "a", firstRules), sandbox.ErrConflict)
	}, 10*time.Second, time.Millisecond, "a sandbox that has failed")
}

func TestF01_TheStepsOfAChange(t *testing.T) {
	assert.Equal(t, []string{"journal", "policy"}, sandbox.NetworkSteps(), "what is written down comes first")
}

func TestN09_RulesThatTheKernelRefusesAreNotWrittenDown(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m := newManager(t, cfg)
	info, err := m.Create(t.Context(), withRules("a", firstRules))
	require.NoError(t, err)
	before := journalOf(t, cfg, "a")
	h.Fail("network.policy", errors.New("no"))
	require.ErrorContains(t, m.SetNetwork(t.Context(), "a", secondRules), "no")
	h.Fail("network.policy", nil)
	assert.Equal(t, policyOf(t, firstRules), h.Policy(info.Slot))
	assert.NotContains(t, journalOf(t, cfg, "a"), "example.com")
	assert.Contains(t, before, "192.0.2.0/24")
	info, err = m.Get("a")
	require.NoError(t, err)
	assert.Equal(t, firstRules, info.Network)
}

func TestN09_RulesThatCannotBeWrittenDownDoNotHold(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m := newManager(t, cfg)
	info, err := m.Create(t.Context(), withRules("a", firstRules))
	require.NoError(t, err)
	dir := filepath.Join(cfg.Dir, "a")
	require.NoError(t, os.Rename(dir, dir+".away"))
	require.Error(t, m.SetNetwork(t.Context(), "a", secondRules))
	assert.Equal(t, policyOf(t, firstRules), h.Policy(info.Slot), "acknowledged or not, it is in force without being written down")
	require.NoError(t, os.Rename(dir+".away", dir))
	require.NoError(t, m.SetNetwork(t.Context(), "a", secondRules))
}

// A kill between the journal and the kernel leaves the one ahead of the other; the next life mends it.
func TestN09_ALaterLifePutsInForceWhatIsWrittenDown(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m, err := sandbox.NewManager(cfg)
	require.NoError(t, err)
	info, err := m.Create(t.Context(), withRules("a", firstRules))
	require.NoError(t, err)
	require.NoError(t, m.Close(t.Context(), false))
	journal := journalOf(t, cfg, "a")
	changed := strings.Replace(journal, `"192.0.2.0/24"`, `"198.51.100.0/24"`, 1)
	require.NotEqual(t, journal, changed)
	require.NoError(t, os.WriteFile(filepath.Join(cfg.Dir, "a", "journal"), []byte(changed), 0o600))
	h.Restart()
	next := newManager(t, cfg)
	finish, err := next.Recover()
	require.NoError(t, err)
	_, err = finish(t.Context())
	require.NoError(t, err)
	want := egress.Rules{AllowInternet: true, DenyOut: []string{"198.51.100.0/24"}}
	assert.Equal(t, policyOf(t, want), h.Policy(info.Slot))
	after, err := next.Get("a")
	require.NoError(t, err)
	assert.Equal(t, want, after.Network)
	assert.Equal(t, sandbox.Running, after.State)
	require.NoError(t, next.SetNetwork(t.Context(), "a", secondRules), "an adopted one can be changed")
}

func TestN09_ASandboxWhoseRulesAreUnsureIsNotAdopted(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m, err := sandbox.NewManager(cfg)
	require.NoError(t, err)
	_, err = m.Create(t.Context(), withRules("a", firstRules))
	require.NoError(t, err)
	require.NoError(t, m.Close(t.Context(), false))
	h.Restart()
	h.Fail("network.policy", errors.New("no"))
	next := newManager(t, cfg)
	finish, err := next.Recover()
	require.NoError(t, err)
	_, err = finish(t.Context())
	require.NoError(t, err)
	assert.Empty(t, next.List())
	assert.Empty(t, h.Census())
}

func journalOf(t *testing.T, cfg sandbox.Config, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(cfg.Dir, id, "journal"))
	require.NoError(t, err)
	return string(data)
}

func TestN07_LimitsAreTheHostsOrLess(t *testing.T) {
	const mega = 1_000_000
	host := sandbox.Limits{Egress: sandbox.Limit{Rate: 200 * mega, Burst: 100 * mega}}
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	cfg.Limits = host
	m := newManager(t, cfg)
	create := func(l sandbox.Limits) (sandbox.Limits, error) {
		req := request("a")
		req.Limits = l
		info, err := m.Create(t.Context(), req)
		if err == nil {
			require.NoError(t, m.Destroy(t.Context(), "a"))
		}
		return info.Limits, err
	}
	egress := func(rate, burst int64) sandbox.Limits {
		return sandbox.Limits{Egress: sandbox.Limit{Rate: rate, Burst: burst}}
	}
	ingress := func(rate, burst int64) sandbox.Limits {
		return sandbox.Limits{Egress: host.Egress, Ingress: sandbox.Limit{Rate: rate, Burst: burst}}
	}
	for _, tc := range []struct{ asked, want sandbox.Limits }{
		{sandbox.Limits{}, host},
		{egress(mega, 0), egress(mega, mega/2)},
		{egress(mega, mega), egress(mega, mega)},
		{egress(65536, 0), egress(65536, 65536)},
		{egress(200*mega, 0), egress(200*mega, 100*mega)},
		{egress(200*mega, 100*mega), egress(200*mega, 100*mega)},
		{sandbox.Limits{Ingress: sandbox.Limit{Rate: 10 * mega}}, ingress(10*mega, 5*mega)},
		{sandbox.Limits{Ingress: sandbox.Limit{Rate: mega, Burst: 60 * mega}}, ingress(mega, 60*mega)},
	} {
		got, err := create(tc.asked)
		require.NoError(t, err, "%+v", tc.asked)
		assert.Equal(t, tc.want, got, "%+v", tc.asked)
	}
	for _, tc := range []struct {
		asked sandbox.Limits
		field string
	}{
		{egress(200*mega+1, 0), "wrenn.egressBytesPerSecond"},
		{egress(65535, 0), "wrenn.egressBytesPerSecond"},
		{egress(-1, 0), "wrenn.egressBytesPerSecond"},
		{egress(0, mega), "wrenn.egressBurstBytes"},
		{egress(mega, 100*mega+1), "wrenn.egressBurstBytes"},
		{egress(10*mega, mega), "wrenn.egressBurstBytes"}, // just under 100 ms
		{egress(mega, 65535), "wrenn.egressBurstBytes"},
		{egress(mega, 60*mega+1), "wrenn.egressBurstBytes"},
		{sandbox.Limits{Ingress: sandbox.Limit{Rate: 100_000*mega + 1}}, "wrenn.ingressBytesPerSecond"},
		{sandbox.Limits{Ingress: sandbox.Limit{Rate: mega, Burst: -1}}, "wrenn.ingressBurstBytes"},
	} {
		_, err := create(tc.asked)
		require.ErrorIs(t, err, sandbox.ErrInvalid, "%+v", tc.asked)
		assert.ErrorContains(t, err, tc.field)
	}
}
