package network_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

// TestN01_AFullHostRefusesAtOnce has more ready networks wanted than there are slots, too.
func TestN01_AFullHostRefusesAtOnce(t *testing.T) {
	s := start(t, harness.Dir(t), "--slots", "2", "--ready-networks", "4")
	first, second := s.Create(), s.Create()
	quickest := time.Hour
	for range 5 {
		begun := time.Now()
		_, err := s.Client.Create(t.Context(), apiclient.CreateRequest{TemplateID: "base"})
		quickest = min(quickest, time.Since(begun))
		var refusal *apiclient.Error
		require.ErrorAs(t, err, &refusal)
		assert.Equal(t, http.StatusServiceUnavailable, refusal.Code)
		assert.Contains(t, refusal.Message, "no free slot: all 2 are in use")
	}
	t.Logf("refused in %v", quickest)
	assert.Less(t, quickest, 100*time.Millisecond)

	require.NoError(t, s.Client.Kill(t.Context(), first.SandboxID))
	third := s.Create()
	assert.Equal(t, "ok\n", s.Exec(third, "echo", "ok"))
	assert.Equal(t, "ok\n", s.Exec(second, "echo", "ok"))
	s.Stop()
}

// TestN02_CreatesTakeReadyNetworks goes through more sandboxes than there are ready networks, two at a time.
func TestN02_CreatesTakeReadyNetworks(t *testing.T) {
	dir := harness.Dir(t)
	before := harness.Take(t)
	s := start(t, dir, "--ready-networks", "3")
	withReady(t, dir, 3)
	for range 4 {
		one, two := s.Create(), s.Create()
		for _, box := range []apiclient.Sandbox{one, two} {
			assert.Equal(t, "ok\n", s.Exec(box, "echo", "ok"))
			require.NoError(t, s.Client.Kill(t.Context(), box.SandboxID))
		}
		t.Logf("the networks took %.1f and %.1f ms", networkStage(one), networkStage(two))
	}
	withReady(t, dir, 3)
	assert.NotContains(t, s.Log(), "level=WARN", "a ready network failed")
	s.Stop()
	before.Same(t)
}

// TestN06_ThePoolOfAKilledAgentIsReclaimed kills the agent with ready networks, once with a sandbox beside
// them, and starts the next one.
func TestN06_ThePoolOfAKilledAgentIsReclaimed(t *testing.T) {
	dir := harness.Dir(t)
	before := harness.Take(t)
	s := start(t, dir, "--ready-networks", "3")
	box := s.Create()
	for range 2 {
		old := withReady(t, dir, 3)
		s.Kill()
		s = start(t, dir, "--ready-networks", "3")
		found := withReady(t, dir, 3)
		_, was := old.kinds("ready", "")
		_, is := found.kinds("ready", "")
		t.Logf("ready networks before %v and after %v", was, is)
		require.Eventually(t, func() bool { found, _ = doctor(t, dir); return len(found.Orphans) == 0 }, harness.Patience, 50*time.Millisecond)
		kinds, _ := found.kinds("sandbox", box.SandboxID)
		assert.Equal(t, wholeNetwork, kinds)
		assert.Equal(t, "ok\n", s.Exec(box, "echo", "ok"))
	}
	require.NoError(t, s.Client.Kill(t.Context(), box.SandboxID))
	s.Stop()
	before.Same(t)
}
