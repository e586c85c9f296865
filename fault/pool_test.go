//go:build fault

package fault

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/network"
	"wrenn/impl/step"
)

// TestF01_EveryStepOfAReadyNetwork is the matrix for networks that are made ahead of need: kept ready by the
// agent in the background, and handed to a sandbox.
func TestF01_EveryStepOfAReadyNetwork(t *testing.T) {
	r := newRig(t, "ready")
	defer r.end()
	const ready = "2"
	r.cfg.Flags = append(r.cfg.Flags, "--ready-networks", ready)
	host := new(network.Host)
	for act, steps := range map[string][]string{
		network.ReadyAct: step.Names(host.ReadySteps(1)), network.HandOverAct: step.Names(host.HandOverSteps(1, network.Policy{})),
	} {
		for _, name := range steps {
			for _, kind := range []string{"kill", "error"} {
				p := point{act, name, "after", kind}
				t.Run(p.String(), func(t *testing.T) { r.at(t).readyRow(p) })
			}
		}
	}
	r.cfg.Flags = r.cfg.Flags[:len(r.cfg.Flags)-2]
	r.restart()
	r.clean(r.neighbour.ID)
	r.host.Same(r.base)
}

// readyRow lets the fault come at a create, or when the network that it took is replaced.
func (r *rig) readyRow(p point) {
	r.restart()
	r.cleanBeside(2, r.neighbour.ID)
	r.arm(p.arm(1))
	_, err := r.tryCreate(r.newID()) // it may succeed: what has met the fault is its successor's network
	r.t.Log("the create says:", err)
	require.EventuallyWithT(r.t, func(t *assert.CollectT) {
		assert.Contains(t, r.trace(), p.where()+" "+p.kind)
	}, patience, 2*time.Millisecond, "the fault did not come")
	r.arm()
	if p.kind == "kill" {
		r.agent.Await()
		r.logs = append(r.logs, r.agent.Log())
		r.start()
	}
	living, err := r.living()
	require.NoError(r.t, err)
	for id, box := range living {
		r.answers(box)
		if id != r.neighbour.ID {
			require.NoError(r.t, r.tryDestroy(id))
		}
	}
	r.cleanBeside(2, r.neighbour.ID)
	again := r.create()
	r.answers(again)
	require.NoError(r.t, r.tryDestroy(again.ID))
}

// cleanBeside is clean with a number of networks that are kept ready.
func (r *rig) cleanBeside(ready int, ids ...string) {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(t *assert.CollectT) {
		living, err := r.living()
		require.NoError(t, err)
		require.Len(t, living, len(ids), "the agent's sandboxes")
		for _, id := range ids {
			require.Contains(t, living, id)
		}
		networks, err := r.client.Networks(r.t.Context())
		require.NoError(t, err)
		kept := 0
		for _, n := range networks {
			if n.SandboxID == "" {
				kept++
				living[fmt.Sprint("ready", n.Slot)] = agentclient.Sandbox{ID: "-", Slot: uint32(n.Slot)}
			}
		}
		assert.Equal(t, ready, kept, "networks that are kept ready")
		assert.Empty(t, leftovers(r.empty, r.host.Take(), living), "left on the host")
	}, patience, 20*time.Millisecond, "%s", r.agent.Name)
}
