package agent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/memfile"
	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
	"wrenn/impl/snapshot"
)

// held is what is on the disk once something has been acknowledged: snapshots by their places, whose IDs stand for
// their contents, and whether the sandbox is paused.
type held struct {
	snapshots map[string]string
	paused    bool
}

// history is what was done on a disk, step by step; contents are those of snapshots, by their IDs.
type history struct {
	before   held // when the recording began
	steps    []held
	contents map[string]content
	// met are the states from which an agent has gone on.
	met map[string]string
}

const theSandbox, theSnapshot = "a", "sandboxes/a/snapshot"

// powerSeed is the run's seed, which may be given.
func powerSeed(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("WRENN_POWER_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("WRENN_POWER_SEED=%d makes this run again", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// life is an agent at work on the recorded disk.
type life struct {
	history
	paperAgent
	mark   func(string)
	random *rand.Rand
	now    held
	last   content
}

func begin(t *testing.T, root string, mark func(string), random *rand.Rand) *life {
	t.Helper()
	return &life{
		history: history{contents: map[string]content{}, met: map[string]string{}}, paperAgent: startPaperAgent(t, root),
		mark: mark, random: random, now: held{snapshots: map[string]string{}},
	}
}

// act does something between two marks; after says what is there from then on.
func (l *life) act(do func() error, after func()) {
	l.t.Helper()
	l.mark(fmt.Sprintf("begin-%d", len(l.steps)))
	require.NoError(l.t, do())
	l.now.snapshots = maps.Clone(l.now.snapshots)
	after()
	l.steps = append(l.steps, l.now)
	l.mark(fmt.Sprintf("end-%d", len(l.steps)-1))
}

func (l *life) kept(place string) {
	l.t.Helper()
	m, err := snapshot.Read(filepath.Join(l.root, place))
	require.NoError(l.t, err)
	l.now.snapshots[place], l.contents[m.ID] = m.ID, l.last
}

func (l *life) work() { l.last = l.machine(theSandbox).work(l.t, l.random) }

func (l *life) create() {
	l.act(func() error {
		_, err := l.Create(l.t.Context(), sandbox.CreateRequest{ID: theSandbox, Template: "base", Timeout: time.Hour})
		return err
	}, func() {})
}

func (l *life) pause() {
	l.work()
	l.act(func() error { _, err := l.Pause(l.t.Context(), theSandbox, false); return err },
		func() { l.kept(theSnapshot); l.now.paused = true })
}

func (l *life) resume() {
	l.act(func() error { _, err := l.Resume(l.t.Context(), theSandbox, time.Hour, false, false); return err },
		func() { l.now.paused = false })
	l.last.same(l.t, l.machine(theSandbox).content(l.t), "before any power failure")
}

func (l *life) name(name string) {
	l.act(func() error { _, _, err := l.Snapshot(l.t.Context(), theSandbox, name); return err }, func() { l.kept("snapshots/" + name) })
}

// live lets an agent pause, resume and snapshot on the recorded disk.
func live(t *testing.T, w *writeLog, random *rand.Rand) history {
	t.Helper()
	l := begin(t, w.mount, w.mark, random)
	defer l.end()
	l.create()
	l.pause()
	l.resume()
	l.pause()
	l.name("gold") // of one that is paused
	l.resume()
	l.work()
	l.name("fork") // of one that runs
	l.pause()
	l.act(func() error { return l.DeleteSnapshot("gold", false) }, func() { delete(l.now.snapshots, "snapshots/gold") })
	return l.history
}

// TestS08_APowerFailureLeavesTheOldOrTheNew cuts the power of a host at each moment at which something became
// durable, and in between, of a life with pauses, resumes and named snapshots. Each snapshot is then the one
// before or the one after, whole; what was acknowledged is there; and the next life of the agent takes it up.
func TestS08_APowerFailureLeavesTheOldOrTheNew(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			random := powerSeed(t)
			w := recordWrites(t, fs, func(mount string) { paperImage(t, mount) })
			h := live(t, w, random)
			h.cutEverywhere(t, w, random)
		})
	}
}

// cutEverywhere ends the recording and looks at each moment of it.
func (h history) cutEverywhere(t *testing.T, w *writeLog, random *rand.Rand) {
	t.Helper()
	w.stop()
	seen := map[string]int{}
	start := time.Now()
	moments := w.replay(random, func(mount string, marks []string) {
		seen[h.check(t, mount, marks)]++
	})
	t.Logf("%d writes, %d moments in %v: %v", len(w.entries), moments, time.Since(start).Round(time.Second), seen)
	assert.Greater(t, len(seen), 2*len(h.steps)-5, "too few of the states in between were met")
}

// check looks at a disk after a power failure. It returns what it has found, in a few words.
func (h history) check(t *testing.T, root string, marks []string) string {
	t.Helper()
	done, begun := -1, -1
	for _, mark := range marks {
		_, err := fmt.Sscanf(mark, "begin-%d", &begun)
		if err != nil {
			_, err = fmt.Sscanf(mark, "end-%d", &done)
		}
		require.NoError(t, err)
	}
	before, created := h.before, done >= 0 || len(h.before.snapshots) > 0
	if done >= 0 {
		before = h.steps[done]
	}
	after := before
	if begun > done {
		after = h.steps[begun]
	}
	when := fmt.Sprintf("after %v", marks)
	places := slices.Collect(maps.Keys(h.steps[0].snapshots))
	for _, s := range h.steps {
		places = slices.AppendSeq(places, maps.Keys(s.snapshots))
	}
	slices.Sort(places)
	journal, err := os.ReadFile(filepath.Join(root, "sandboxes", theSandbox, "journal"))
	assert.True(t, err == nil || !created, "%s: the journal is lost: %v", when, err)
	state := fmt.Sprint(done, begun, string(journal))
	for _, place := range slices.Compact(places) {
		m, err := snapshot.Load(t.Context(), filepath.Join(root, place))
		if errors.Is(err, os.ErrNotExist) {
			assert.True(t, before.snapshots[place] == "" || after.snapshots[place] == "", "%s: %s is lost: %v", when, place, err)
			continue
		}
		require.NoError(t, err, "%s: %s", when, place)
		assert.Contains(t, []string{before.snapshots[place], after.snapshots[place]}, m.ID, "%s: %s is another", when, place)
		h.whole(t, filepath.Join(root, place), m, when)
		state += fmt.Sprint(m.ID, m.Layers)
	}
	if h.met[state] == "" {
		h.met[state] = h.goOn(t, root, before.paused && after.paused, created, when)
	}
	return fmt.Sprintf("%d+%d %s", done, begun-done, h.met[state])
}

// whole compares a snapshot with the content that its ID stands for.
func (h history) whole(t *testing.T, dir string, m snapshot.Manifest, when string) {
	t.Helper()
	want := h.contents[m.ID]
	chain, err := memfile.Open(layerPaths(dir, m.Layers)...)
	require.NoError(t, err, when)
	defer chain.Close()
	require.NoError(t, chain.Verify(t.Context()), when)
	for at := int64(0); at < paperPages*memfile.PageSize; at += memfile.PageSize {
		page := make([]byte, memfile.PageSize)
		_, err := chain.ReadAt(page, at)
		require.NoError(t, err, when)
		wanted, ok := want.memory[at]
		if !ok {
			wanted = zeroPage
		}
		require.True(t, string(page) == wanted, "%s: %s: wrong memory at %d", when, dir, at)
	}
	disk, err := os.ReadFile(filepath.Join(dir, rootfs.DiskName))
	require.NoError(t, err, when)
	require.True(t, bytes.Equal(disk, want.disk), "%s: %s: wrong disk", when, dir)
}

// goOn is the next life of the agent. What it lists as paused is resumed, and named snapshots are started from.
func (h history) goOn(t *testing.T, root string, paused, created bool, when string) string {
	t.Helper()
	_, broken, err := sandbox.Journaled(filepath.Join(root, "sandboxes"))
	require.NoError(t, err, when)
	if created {
		assert.Empty(t, broken, "%s: a torn journal", when)
	}
	a := startPaperAgent(t, root)
	defer a.end()
	require.NoError(t, a.recover(), when)
	same := func(id, place string) {
		m, err := snapshot.Read(filepath.Join(root, place))
		require.NoError(t, err, when)
		h.contents[m.ID].same(t, a.machine(id).content(t), when+": "+place)
	}
	found := "nothing"
	if info, err := a.Get(theSandbox); err == nil {
		require.Equal(t, sandbox.Paused, info.State, "%s: %s", when, info.Failure)
		_, err := a.Resume(t.Context(), theSandbox, time.Hour, false, false)
		require.NoError(t, err, when)
		same(theSandbox, theSnapshot)
		found = fmt.Sprintf("generation %d", info.Generation)
	}
	assert.False(t, paused && found == "nothing", "%s: a paused sandbox is lost", when)
	list, err := a.ListSnapshots()
	require.NoError(t, err, when)
	for i, snap := range list {
		id := fmt.Sprintf("clone%d", i)
		_, err := a.Create(t.Context(), sandbox.CreateRequest{ID: id, Snapshot: snap.Name, Timeout: time.Hour})
		require.NoError(t, err, when)
		same(id, "snapshots/"+snap.Name)
		found += " and " + snap.Name
	}
	return found
}
