//go:build fault

package fault

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// These cover an orderly end with sandboxes, and a start with a probe of the VMM.
const (
	stopSpan  = 150 * time.Millisecond
	startSpan = 150 * time.Millisecond
)

// TestF02_RandomKillsOfStartsAndStops kills the agent while it ends in an orderly way and takes everything
// down, and the next life while it starts: between any two of the things that both do to the host.
func TestF02_RandomKillsOfStartsAndStops(t *testing.T) {
	seed := number(t, seedEnv, int(time.Now().UnixNano()%1e9))
	rounds := number(t, roundsEnv, defaultRounds)
	t.Logf("%s=%d %s=%d", seedEnv, seed, roundsEnv, rounds)
	r := newRig(t, "startstop")
	r.traffic.stop(t)
	require.NoError(t, r.tryDestroy(r.neighbour.ID))
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	for round := range rounds {
		for range 2 {
			r.create()
		}
		r.agent.Signal(os.Interrupt)
		r.killWithin(rng, stopSpan)
		r.agent = r.host.LaunchAgent(r.cfg)
		r.agent.Mute()
		r.killWithin(rng, startSpan)
		r.start()
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			living, err := r.living()
			require.NoError(t, err)
			assert.Empty(t, leftovers(r.empty, r.host.Take(), living))
		}, patience, 20*time.Millisecond, "round %d of seed %d", round, seed)
		living, err := r.living()
		require.NoError(t, err)
		for id := range living {
			require.NoError(t, r.tryDestroy(id))
		}
	}
	r.end()
}

// killWithin kills the agent after a random time, if it has not ended by then.
func (r *rig) killWithin(rng *rand.Rand, span time.Duration) {
	select {
	case <-r.agent.Done():
	case <-time.After(time.Duration(rng.Int64N(int64(span)))):
		r.agent.Kill()
	}
}
