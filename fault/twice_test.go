//go:build fault

package fault

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// TestF01_KilledAgainWhileItClearsUp kills the agent at a step, and the next life while it clears up after
// that: all kills of the matrix with one place of the clearing up, and all places of that with a sandbox that
// was nearly there.
func TestF01_KilledAgainWhileItClearsUp(t *testing.T) {
	r := newRig(t, "twice")
	defer r.end()
	second := cleanup()
	first := point{sandbox.CreateAct, last(sandbox.CreateSteps()), "after", "kill"}
	for _, q := range second {
		t.Run(first.String()+", "+q.String(), func(t *testing.T) { r.at(t).twice(first, q) })
	}
	for _, p := range matrix() {
		if p.kind == "kill" {
			q := point{sandbox.RecoverAct, sandbox.RecoverSteps()[1], "after", "kill"}
			t.Run(p.String()+", "+q.String(), func(t *testing.T) { r.at(t).twice(p, q) })
		}
	}
}

// twice is a row with two kills, the second at q in the life after the first.
func (r *rig) twice(p, q point) {
	victim, slot := r.provoke(p)
	r.agent.Await()
	r.logs = append(r.logs, r.agent.Log())
	r.arm(q.arm(1))
	_ = r.tryStart() // it may be killed before it serves, or after
	select {
	case <-r.agent.Done():
	case <-time.After(patience):
		require.Fail(r.t, "the restart is not killed", "%v", r.trace())
	}
	r.fired(q)
	r.logs = append(r.logs, r.agent.Log())
	r.arm()
	r.start()
	r.settle(p, victim)
	r.usable(slot)
}

// TestF01_KilledWhileItTakesBack fails the last step of a network's create and kills the agent at each undo.
func TestF01_KilledWhileItTakesBack(t *testing.T) {
	r := newRig(t, "undo")
	defer r.end()
	for _, a := range acts() {
		failed := point{a.name, last(a.steps), "after", "error"}
		for _, name := range a.undone {
			p := point{a.name, name, "undone", "kill"}
			t.Run(p.String(), func(t *testing.T) {
				here := r.at(t)
				victim, slot := here.provoke(p, failed.arm(1))
				here.agent.Await()
				here.start()
				here.settle(p, victim)
				here.usable(slot)
			})
		}
	}
}

// TestF01_AnErrorInAnUndoIsTriedAgain fails an undo: the destroy that follows a failed create mends it.
func TestF01_AnErrorInAnUndoIsTriedAgain(t *testing.T) {
	r := newRig(t, "undo-error")
	defer r.end()
	for _, a := range acts() {
		if a.start != byCreate {
			continue // impl/sandbox has those, on parts in memory
		}
		failed := point{a.name, last(a.steps), "after", "error"}
		for _, name := range a.undone {
			id := r.newID()
			r.arm(failed.arm(1), point{a.name, name, "undone", "error"}.arm(1))
			_, err := r.tryCreate(id)
			require.ErrorContains(t, err, "undo "+name, "the error does not name the undo")
			r.arm()
			r.clean(r.neighbour.ID)
		}
	}
}

// TestF03_AStoppedAgentGoesOn stops the agent by SIGSTOP in the middle of a create, as a debugger or a
// frozen control group does.
func TestF03_AStoppedAgentGoesOn(t *testing.T) {
	r := newRig(t, "stop")
	defer r.end()
	p := point{network.CreateAct, "veth", "after", "stop"}
	r.arm(p.arm(1))
	id, done := r.newID(), make(chan error, 1)
	go func() {
		_, err := r.tryCreate(id)
		done <- err
	}()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		assert.Contains(t, r.trace(), p.where()+" stop")
		assert.True(t, r.agent.Stopped())
	}, patience, 5*time.Millisecond)
	before := r.traffic.count()
	time.Sleep(300 * time.Millisecond) // the time in which nothing may come of the create
	require.Empty(t, done)
	require.Greater(t, r.traffic.count(), before, "the neighbour is stopped with the agent")
	r.arm()
	r.agent.Signal(cont)
	require.NoError(t, <-done)
	r.clean(r.neighbour.ID, id)
}

func last(names []string) string { return names[len(names)-1] }
