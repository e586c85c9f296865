//go:build fault

package fault

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/agentclient"
	"wrenn/impl/sandbox"
)

// shortStride is the distance between the rows that -short goes through. Three rows belong to a step, so a number
// that is no multiple of three meets each kind.
const shortStride = 7

// TestF01_EveryStep is the matrix: for each row the fault, the look at the kernel, a restart, the look again,
// a sandbox on the very slot, a second restart, which changes nothing, and all the while the neighbour's
// traffic.
func TestF01_EveryStep(t *testing.T) {
	r := newRig(t, "matrix")
	defer r.end()
	var table report
	defer table.print(t)
	for i, p := range matrix() {
		if testing.Short() && i%shortStride != 0 {
			continue
		}
		begin := time.Now()
		var left int
		ok := t.Run(p.String(), func(t *testing.T) { left = r.at(t).row(p) })
		table.add(p, ok, left, r.traffic.check(t), time.Since(begin))
		if !ok {
			r.recover(t)
		}
	}
	visited := map[string]bool{}
	for _, p := range append(matrix(), cleanup()...) {
		visited[p.act+"/"+p.step] = true
	}
	for where := range r.seen {
		if strings.HasPrefix(where, wakes+"/") {
			continue
		}
		assert.True(t, visited[where], "the agent has the step %s, which the matrix does not know: give the act a line in acts", where)
	}
}

// row goes through one point and returns how many objects the fault left on the host. It starts and ends with
// an agent that has just been started, whose next slot is the first that is free.
func (r *rig) row(p point) (left int) {
	victim, slot := r.provoke(p)
	left = len(leftovers(r.empty, r.host.Take(), map[string]agentclient.Sandbox{r.neighbour.ID: r.neighbour}))
	if r.between != nil {
		r.between(r)
	}
	if p.kind == "kill" {
		r.agent.Await()
		r.logs = append(r.logs, r.agent.Log())
		r.start()
		r.settle(p, victim)
	} else {
		r.finish(p, victim)
	}
	r.usable(slot)
	return left
}

// usable asserts that nothing is left, that a second restart changes nothing, and that the slot can be used.
func (r *rig) usable(slot uint32) {
	r.t.Helper()
	r.clean(r.neighbour.ID)
	r.host.Same(r.base)
	r.restart()
	r.clean(r.neighbour.ID)
	r.host.Same(r.base)

	again := r.create()
	assert.Equal(r.t, slot, again.Slot, "the slot of the fault is not the first that is free")
	r.answers(again)
	r.clean(r.neighbour.ID, again.ID)
	require.NoError(r.t, r.tryDestroy(again.ID))
	r.clean(r.neighbour.ID)
	r.restart()
}

// provoke makes the fault at p come, and with it what else is armed: by a create, or by what the act starts
// with, of a sandbox that it makes first. slot is the one concerned.
func (r *rig) provoke(p point, lines ...string) (id string, slot uint32) {
	r.t.Helper()
	lines = append(lines, p.arm(1))
	id, slot = r.newID(), r.neighbour.Slot+1 // the agent has just started, and takes the first that is free
	start := startOf(p.act)
	if start != byCreate {
		_, err := r.tryCreate(id)
		require.NoError(r.t, err)
	}
	if start == byResume || start == byKeep {
		require.NoError(r.t, r.tryPause(id))
	}
	r.arm(lines...)
	err := r.begin(start, id)
	silent := start == byDeath || start == byPark && p.kind == "error"
	if !silent {
		require.Error(r.t, err, "the call whose agent has met a fault succeeds")
	}
	require.EventuallyWithT(r.t, func(t *assert.CollectT) {
		assert.Contains(t, r.trace(), p.where()+" "+p.kind)
	}, patience, 2*time.Millisecond, "the fault did not come")
	r.arm()
	if p.kind == "error" {
		assert.Nil(r.t, r.agent.State(), "the agent has ended")
		if !silent {
			assert.ErrorContains(r.t, err, "step "+p.step, "the error does not name the step")
			assert.ErrorContains(r.t, err, "injected fault")
		}
	}
	return id, slot
}

// begin does what the acts of that start begin with.
func (r *rig) begin(start start, id string) error {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	switch start {
	case byCreate:
		_, err := r.tryCreate(id)
		return err
	case byDeath:
		r.killVMM(id)
		return nil
	case byPause, byPark:
		return r.tryPause(id)
	case byResume:
		_, _, _, err := r.client.Resume(ctx, agentclient.ResumeRequest{ID: id, Timeout: time.Hour})
		return err
	case byKeep:
		_, _, err := r.client.Snapshot(ctx, id, keptName)
		return err
	default:
		return r.tryDestroy(id)
	}
}

// keptName is of the snapshots that are made.
const keptName = "kept"

// tryPause pauses a sandbox's files, and its memory where the VMM has one.
func (r *rig) tryPause(id string) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	_, _, err := r.client.Pause(ctx, id, !r.withMemory)
	return err
}

// killVMM kills the VMM of a sandbox, as its crash or the kernel would.
func (r *rig) killVMM(id string) {
	r.t.Helper()
	r.host.Run("pkill", "-KILL", "-f", "api-sock .*/sandboxes/"+id+"/")
}

// settle ends what a kill has left of a sandbox. Only one whose end was not yet written down may live on; one
// whose machine has died may still be listed with the reason.
func (r *rig) settle(p point, id string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	box, err := r.client.Get(ctx, id)
	if err != nil {
		require.ErrorIs(r.t, err, agentclient.ErrNotFound)
		return
	}
	switch startOf(p.act) {
	case byDestroy:
		assert.Equal(r.t, "before", p.moment, "what was being destroyed lives on")
		r.answers(box)
	case byDeath:
		assert.Equal(r.t, agentclient.StateFailed, box.State)
	case byPause, byPark, byResume, byKeep:
		r.settled(p, id)
	default:
		assert.Fail(r.t, "what was half made lives on")
	}
	r.drop(id)
}

// settled asserts that a sandbox is on the side of the act where its commit says, and that it comes back.
func (r *rig) settled(p point, id string) {
	r.t.Helper()
	want := agentclient.StatePaused
	committed := p.step == "commit" || p.step == last(sandbox.ResumeSteps())
	switch {
	case startOf(p.act) == byPause && (p.kind == "error" || !committed || p.moment == "before"),
		startOf(p.act) == byPause && p.moment == "undone",
		startOf(p.act) == byResume && p.kind == "kill" && committed && p.moment == "after":
		want = agentclient.StateRunning
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	require.EventuallyWithT(r.t, func(t *assert.CollectT) {
		box, err := r.client.Get(ctx, id)
		require.NoError(t, err)
		require.Equal(t, want, box.State)
	}, patience, 5*time.Millisecond)
	if want == agentclient.StatePaused && !r.withMemory {
		return // see act.real
	}
	box, _, _, err := r.client.Resume(ctx, agentclient.ResumeRequest{ID: id, Timeout: time.Hour})
	require.NoError(r.t, err)
	r.answers(box)
}

// drop destroys a sandbox, and the snapshot that was made of it.
func (r *rig) drop(id string) {
	r.t.Helper()
	require.NoError(r.t, r.tryDestroy(id))
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	if err := r.client.DeleteSnapshot(ctx, keptName, false); err != nil {
		require.ErrorIs(r.t, err, agentclient.ErrNotFound)
	}
}

// finish ends what an error has left: a create that fails leaves nothing, a destroy that fails may be
// repeated, and a sandbox whose machine has died is destroyed like any other.
func (r *rig) finish(p point, id string) {
	r.t.Helper()
	if startOf(p.act) == byCreate {
		assert.ErrorIs(r.t, r.tryDestroy(id), agentclient.ErrNotFound, "a create that failed has left a sandbox")
		return
	}
	switch startOf(p.act) {
	case byPause, byPark, byResume, byKeep:
		r.settled(p, id)
	default:
	}
	r.drop(id)
}

// recover makes the host usable for the next row after one that failed, as far as it can.
func (r *rig) recover(t *testing.T) {
	r.arm()
	if r.agent.State() != nil {
		r.start()
	}
	living, err := r.living()
	t.Logf("after a failed row: %v", err)
	for id := range living {
		if id != r.neighbour.ID {
			t.Log(id, r.tryDestroy(id))
		}
	}
	r.restart()
}

// report is the matrix as it went.
type report struct{ lines []string }

func (rep *report) add(p point, ok bool, left int, worst, took time.Duration) {
	result := "clean"
	if !ok {
		result = "FAILED"
	}
	if len(rep.lines) == 0 {
		rep.lines = append(rep.lines, fmt.Sprintf("%-16s %-10s %-7s %-6s %-7s %5s %8s %6s", "act", "step", "moment", "kind", "result", "left", "gap", "ms"))
	}
	rep.lines = append(rep.lines, fmt.Sprintf("%-16s %-10s %-7s %-6s %-7s %5d %8.1f %6d",
		p.act, p.step, p.moment, p.kind, result, left, float64(worst.Microseconds())/1000, took.Milliseconds()))
}

func (rep *report) print(t *testing.T) {
	table := strings.Join(rep.lines, "\n")
	t.Logf("left: objects on the host after the fault and before the restart; gap: the neighbour's slowest exchange, ms\n%s", table)
	if t.Failed() {
		harness.Artifact(t, "matrix.txt", []byte(table))
	}
}
