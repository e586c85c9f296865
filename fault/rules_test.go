//go:build fault

package fault

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/sandbox"
)

// Rules before and after a change, as far as it comes.
var (
	oldRules = agentclient.NetworkRules{AllowInternet: true}
	newRules = agentclient.NetworkRules{AllowInternet: true, DenyOut: []string{"192.0.2.0/24"}}
)

// TestF01_EveryStepOfAChangeOfRules is the matrix for a change of a living sandbox's network rules: it came
// or it did not, the sandbox lives on, and the change can be made again.
func TestF01_EveryStepOfAChangeOfRules(t *testing.T) {
	r := newRig(t, "rules")
	defer r.end()
	for _, name := range sandbox.NetworkSteps() {
		for _, moment := range []string{"before", "after"} {
			for _, kind := range []string{"kill", "error"} {
				p := point{sandbox.NetworkAct, name, moment, kind}
				t.Run(p.String(), func(t *testing.T) { r.at(t).rulesRow(p) })
			}
		}
	}
}

func (r *rig) rulesRow(p point) {
	set := func(rules agentclient.NetworkRules) error {
		return r.client.SetNetwork(r.t.Context(), r.neighbour.ID, rules)
	}
	require.NoError(r.t, set(oldRules))
	r.arm(p.arm(1))
	err := set(newRules)
	require.Error(r.t, err, "the change whose agent has met a fault is acknowledged")
	require.EventuallyWithT(r.t, func(t *assert.CollectT) {
		assert.Contains(t, r.trace(), p.where()+" "+p.kind)
	}, patience, 2*time.Millisecond, "the fault did not come")
	r.arm()
	want := []agentclient.NetworkRules{oldRules}
	if p.kind == "kill" {
		r.agent.Await()
		r.logs = append(r.logs, r.agent.Log())
		r.start()
		if p != (point{sandbox.NetworkAct, sandbox.NetworkSteps()[0], "before", "kill"}) {
			want = []agentclient.NetworkRules{newRules} // it was written down
		}
	}
	assert.Contains(r.t, want, r.rules())
	r.answers(r.neighbour)
	require.NoError(r.t, set(newRules))
	assert.Equal(r.t, newRules, r.rules())
	r.clean(r.neighbour.ID)
	r.restart()
	assert.Equal(r.t, newRules, r.rules(), "what was acknowledged is lost")
	r.traffic.check(r.t)
}

// rules are those that the agent knows of the neighbour.
func (r *rig) rules() agentclient.NetworkRules {
	r.t.Helper()
	box, err := r.client.Get(r.t.Context(), r.neighbour.ID)
	require.NoError(r.t, err)
	require.NotNil(r.t, box.Network)
	rules := *box.Network
	if len(rules.DenyOut) == 0 {
		rules.DenyOut = nil
	}
	if len(rules.AllowOut) == 0 {
		rules.AllowOut = nil
	}
	return rules
}
