//go:build fault

package fault

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// ofNetwork are the kinds of a census that a network is made of.
var ofNetwork = []string{"netns", "mounts", "links", "addresses", "routes", "iptables"}

// TestN04_AFailedNetworkIsGoneBeforeTheTeardown stops the agent between the failed create of a network and
// the teardown of its sandbox, which would remove the network too and so hide an undo that is missing.
func TestN04_AFailedNetworkIsGoneBeforeTheTeardown(t *testing.T) {
	r := newRig(t, "undone")
	defer r.end()
	pause := point{sandbox.DestroyAct, sandbox.DestroySteps()[0], "before", "stop"}
	for _, p := range matrix() {
		if p.act != network.CreateAct || p.kind != "error" {
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			here := r.at(t)
			here.arm(p.arm(1), pause.arm(1))
			id, done := here.newID(), make(chan error, 1)
			go func() {
				_, err := here.tryCreate(id)
				done <- err
			}()
			require.Eventually(t, here.agent.Stopped, patience, time.Millisecond, "%v", here.trace())
			now := here.host.Take()
			here.arm()
			here.agent.Signal(cont)
			require.ErrorContains(t, <-done, "step "+p.step)
			for _, left := range here.base.Diff(now) {
				kind, _, _ := strings.Cut(left[2:], ":")
				assert.False(t, slices.Contains(ofNetwork, kind), "left by the undos: %s", left)
			}
			here.clean(r.neighbour.ID)
		})
	}
}

// TestF01_AnErrorWhileItClearsUpIsMendedByTheNextStart fails each step of the clearing up after a kill.
func TestF01_AnErrorWhileItClearsUpIsMendedByTheNextStart(t *testing.T) {
	r := newRig(t, "clear-up")
	defer r.end()
	p := point{sandbox.CreateAct, last(sandbox.CreateSteps()), "after", "kill"}
	for _, q := range cleanup() {
		if q.moment == "after" && q.act == sandbox.RecoverAct {
			continue // what was done is done
		}
		q.moment, q.kind = "before", "error"
		t.Run(q.String(), func(t *testing.T) {
			here := r.at(t)
			victim, slot := here.provoke(p)
			here.agent.Await()
			here.arm(q.arm(1))
			here.start()
			require.EventuallyWithT(t, func(t *assert.CollectT) {
				assert.Contains(t, here.trace(), q.where()+" "+q.kind)
			}, patience, 2*time.Millisecond, "the fault did not come")
			here.arm()
			here.restart()
			here.settle(p, victim)
			here.usable(slot)
		})
	}
}

// TestF01_ATeardownThatFailsIsTriedAgainByItself fails a destroy and then only waits.
func TestF01_ATeardownThatFailsIsTriedAgainByItself(t *testing.T) {
	t.Parallel() // it waits half a minute, on a host of its own
	r := newRig(t, "retry")
	defer r.end()
	box := r.create()
	r.arm(point{network.RemoveAct, "netns", "before", "error"}.arm(1))
	require.ErrorContains(t, r.tryDestroy(box.ID), "step netns")
	r.arm()
	list, err := r.client.List(t.Context())
	require.NoError(t, err)
	at := slices.IndexFunc(list, func(b agentclient.Sandbox) bool { return b.ID == box.ID })
	require.GreaterOrEqual(t, at, 0, "a sandbox that is not wholly gone is no longer listed")
	assert.Equal(t, agentclient.StateDestroying, list[at].State)
	assert.NotEmpty(t, r.base.Diff(r.host.Take()), "nothing was left, so there is nothing to try again")
	require.Eventually(t, func() bool {
		living, err := r.living()
		return err == nil && len(living) == 1
	}, teardownRetry+patience, 100*time.Millisecond)
	r.clean(r.neighbour.ID)
}

// teardownRetry is the pause before an agent tries a teardown again that has failed.
const teardownRetry = 30 * time.Second
