//go:build fault

package sandbox_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/step"
)

func TestF01_AnErrorAfterAnyStepOfAChangeLeavesTheFormerRules(t *testing.T) {
	for _, name := range sandbox.NetworkSteps() {
		t.Run(name, func(t *testing.T) {
			h := sandboxtest.NewHost()
			cfg := config(t, h)
			m := newManager(t, cfg)
			info, err := m.Create(t.Context(), withRules("a", firstRules))
			require.NoError(t, err)
			t.Setenv(step.FaultEnv, sandbox.NetworkAct+"/"+name+"=error")
			require.ErrorContains(t, m.SetNetwork(t.Context(), "a", secondRules), "step "+name)
			assert.Equal(t, policyOf(t, firstRules), h.Policy(info.Slot))
			assert.NotContains(t, journalOf(t, cfg, "a"), "example.com")
			info, err = m.Get("a")
			require.NoError(t, err)
			assert.Equal(t, firstRules, info.Network)
		})
	}
}
