//go:build fault

package sandbox_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/step"
)

var seed = flag.Uint64("seed", 0, "of the random sequence; 0 for one of its own")

// acted is every step of the acts that the random sequence does.
func acted() []string {
	var all []string
	for act, names := range map[string][]string{
		sandbox.PauseAct: step.Names(sandbox.PauseSteps()), sandbox.ParkAct: sandbox.ParkSteps(), sandbox.ResumeAct: sandbox.ResumeSteps(),
		sandbox.SnapshotAct: step.Names(sandbox.SnapshotSteps()), sandbox.KeepAct: step.Names(sandbox.KeepSteps()),
		sandbox.DestroyAct: sandbox.DestroySteps(), sandbox.CreateAct: append(sandbox.CreateSteps(), sandbox.CloneSteps()...),
		sandbox.WakeAct: sandbox.WakeSteps(),
	} {
		for _, name := range names {
			all = append(all, act+"/"+name)
		}
	}
	return all
}

// content is what a guest's program has written, by key.
type content map[string]string

// model is what must be there: the content of each sandbox and of each snapshot that was acknowledged.
type model struct {
	*world
	r         *rand.Rand
	boxes     map[string]content
	snapshots map[string]content
	serial    int
	log       []string
}

func copyOf(c content) content {
	out := content{}
	maps.Copy(out, c)
	return out
}

func pick[V any](r *rand.Rand, from map[string]V) string {
	if len(from) == 0 {
		return ""
	}
	keys := slices.Sorted(maps.Keys(from)) // the order of a map is random, which a seed could not repeat
	return keys[r.IntN(len(keys))]
}

// TestF02_RandomActsAndDeaths: sandboxes are written to, paused, resumed, snapshotted, cloned and destroyed in a
// random order, while steps fail and the agent dies, and nothing that was acknowledged is ever lost, older than
// it should be, or left behind.
func TestF02_RandomActsAndDeaths(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	m := &model{world: newWorld(t), r: rand.New(rand.NewPCG(s, 1)), boxes: map[string]content{}, snapshots: map[string]content{}}
	defer func() {
		if t.Failed() {
			for _, line := range m.log[max(0, len(m.log)-30):] {
				t.Log(line)
			}
		}
	}()
	all := acted()
	rounds := 400
	if testing.Short() {
		rounds = 100
	}
	for range rounds {
		line := ""
		switch m.r.IntN(4) {
		case 0:
			line = fmt.Sprintf("%s %s abandon %d", all[m.r.IntN(len(all))], []string{"before", "after"}[m.r.IntN(2)], 1)
		case 1:
			line = fmt.Sprintf("%s %s error %d", all[m.r.IntN(len(all))], []string{"before", "after"}[m.r.IntN(2)], 1)
		}
		m.arm(line)
		m.act(line)
		m.arm("")
		if line != "" || m.r.IntN(8) == 0 {
			m.restart()
		}
		m.compare()
	}
}

// act does one thing and says in the model what it has come to. Of a call that did not succeed either outcome
// is legal, and what has become of it is looked up after the restart by compare.
func (m *model) act(fault string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	id := pick(m.r, m.boxes)
	what := m.r.IntN(10)
	if id == "" {
		what = 0
	}
	m.log = append(m.log, fmt.Sprintf("%d %s %q", what, id, fault))
	switch what {
	case 0, 1:
		m.serial++
		m.create(ctx, fmt.Sprint("box", m.serial), "")
	case 2:
		if name := pick(m.r, m.snapshots); name != "" {
			m.serial++
			m.create(ctx, fmt.Sprint("box", m.serial), name)
		}
	case 3, 4:
		_, _ = m.m.Pause(ctx, id, false)
	case 5, 6:
		_, _ = m.m.Resume(ctx, id, time.Hour, false, false)
	case 7:
		m.serial++
		name := fmt.Sprint("snap", m.serial)
		if _, _, err := m.m.Snapshot(ctx, id, name); err == nil && !m.faulted() {
			m.snapshots[name] = copyOf(m.boxes[id])
		} else {
			m.snapshots[name] = content{"?": id} // either
		}
	case 8:
		if len(m.boxes) > 3 {
			if m.m.Destroy(ctx, id) == nil {
				delete(m.boxes, id)
			} else {
				m.boxes[id]["?"] = "destroyed"
			}
		}
	case 9:
		if name := pick(m.r, m.snapshots); name != "" && len(m.snapshots) > 2 {
			if m.m.DeleteSnapshot(name, true) == nil {
				delete(m.snapshots, name)
			}
		}
	}
}

// faulted says whether some fault has come since it was armed.
func (m *model) faulted() bool {
	trace, err := os.ReadFile(m.faults + step.FaultTrace)
	return err == nil && (strings.Contains(string(trace), " abandon\n") || strings.Contains(string(trace), " error\n"))
}

func (m *model) create(ctx context.Context, id, from string) {
	req := sandbox.CreateRequest{ID: id, Template: "base", Timeout: time.Hour, Snapshot: from}
	_, err := m.m.Create(ctx, req)
	m.boxes[id] = copyOf(m.snapshots[from])
	if err != nil || m.faulted() {
		m.boxes[id]["?"] = "created" // either
	}
}

// compare looks at all that is there, and writes something new to what runs.
func (m *model) compare() {
	t := m.t
	m.settled()
	for _, id := range slices.Sorted(maps.Keys(m.boxes)) {
		want := m.boxes[id]
		state := m.state(id)
		doubt := want["?"]
		delete(want, "?")
		if state == sandbox.Gone {
			require.NotEmpty(t, doubt, "%s is gone", id)
			delete(m.boxes, id)
			continue
		}
		if state != sandbox.Running {
			continue
		}
		for key, value := range want {
			inMemory, onDisk, err := m.h.Read(id, key)
			require.NoError(t, err)
			require.Equal(t, value, inMemory, "%s of %s in memory", key, id)
			require.Equal(t, value, onDisk, "%s of %s on disk", key, id)
		}
		key := fmt.Sprint("k", m.r.IntN(6))
		m.serial++
		value := []string{"", fmt.Sprint("v", m.serial)}[m.r.IntN(2)]
		require.NoError(t, m.h.Write(id, key, value))
		want[key] = value
	}
	list, err := m.m.ListSnapshots()
	require.NoError(t, err)
	there := map[string]bool{}
	for _, s := range list {
		there[s.Name] = true
		_, known := m.snapshots[s.Name]
		require.True(t, known, "snapshot %s came back", s.Name)
	}
	for name, want := range m.snapshots {
		switch _, doubt := want["?"]; {
		case !there[name]:
			require.True(t, doubt, "snapshot %s is gone", name)
			delete(m.snapshots, name)
		case doubt: // it was never acknowledged, and nobody may rely on it
			require.NoError(t, m.m.DeleteSnapshot(name, true))
			delete(m.snapshots, name)
		}
	}
}
