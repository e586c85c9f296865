//go:build fault

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/snapshot"
	"wrenn/impl/step"
)

// world is a host, and a Manager that can be abandoned in the middle of a step as by a SIGKILL.
type world struct {
	t      *testing.T
	h      *sandboxtest.Host
	cfg    sandbox.Config
	m      *sandbox.Manager
	faults string
}

func newWorld(t *testing.T) *world {
	h := sandboxtest.NewHost()
	h.Slots = 40
	w := &world{t: t, h: h, cfg: config(t, h), faults: filepath.Join(t.TempDir(), "faults")}
	w.cfg.MemoryMiB = 0
	t.Setenv(step.FaultEnv, w.faults)
	w.arm("")
	w.begin()
	t.Cleanup(func() {
		w.arm("")
		assert.NoError(t, w.m.Close(context.Background(), true))
		assert.Empty(t, h.Census())
	})
	return w
}

func (w *world) arm(lines string) {
	require.NoError(w.t, os.WriteFile(w.faults, []byte(lines+"\n"), 0o600))
	require.NoError(w.t, os.RemoveAll(w.faults+step.FaultTrace))
}

// fired says whether the fault has come.
func (w *world) fired(where string) bool {
	trace, err := os.ReadFile(w.faults + step.FaultTrace)
	return err == nil && slices.Contains(strings.Split(string(trace), "\n"), where)
}

// begin is a life of the agent up to where everything has settled.
func (w *world) begin() {
	w.t.Helper()
	var err error
	w.m, err = sandbox.NewManager(w.cfg)
	require.NoError(w.t, err)
	finish, err := w.m.Recover()
	require.NoError(w.t, err)
	_, err = finish(w.t.Context())
	require.NoError(w.t, err)
	w.settled()
}

// restart is the end of a life, which has left its sandboxes as they are, and the next one.
func (w *world) restart() {
	w.t.Helper()
	require.NoError(w.t, w.m.Close(w.t.Context(), false))
	w.h.Restart()
	w.begin()
}

// settled waits until no sandbox is on its way, and asserts that the host holds what they own and no more.
func (w *world) settled() {
	w.t.Helper()
	require.EventuallyWithT(w.t, func(t *assert.CollectT) {
		want := []string{}
		for _, i := range w.m.List() {
			if !assert.Contains(t, []sandbox.State{sandbox.Running, sandbox.Paused}, i.State, "%s %s", i.ID, i.Failure) {
				continue
			}
			if i.State == sandbox.Running {
				want = append(want, "machine "+i.ID, "disk "+i.ID, fmt.Sprint("network ", i.Slot), fmt.Sprint("slot ", i.Slot))
				if i.BootPath == sandbox.Restored {
					want = append(want, "pager "+i.ID)
				}
			}
		}
		slices.Sort(want)
		assert.Equal(t, want, append([]string{}, w.h.Census()...))
		// Also files are waited for: where removing them is what has failed, the host may hold nothing else by then.
		for _, pattern := range []string{"sandboxes/*/snapshot.new", "sandboxes/*/snapshot.merge", "snapshots/.new/*", "snapshots/.gone/*"} {
			found, err := filepath.Glob(filepath.Join(filepath.Dir(w.cfg.Dir), pattern))
			assert.NoError(t, err)
			assert.Empty(t, found, "left in the directory")
		}
	}, 10*time.Second, time.Millisecond)
	assert.Empty(w.t, w.h.Broken())
}

func (w *world) state(id string) sandbox.State {
	info, err := w.m.Get(id)
	if errors.Is(err, sandbox.ErrNotFound) {
		return sandbox.Gone
	}
	require.NoError(w.t, err)
	return info.State
}

// abandonCase is an act, from a sandbox "a" that has the value v, and what may have become of it.
type abandonCase struct {
	act   string
	steps []string
	setup func(w *world)
	do    func(w *world)
	// want says what state a is to be in after the step at index i was abandoned before or after it was done.
	want func(i int, after bool) sandbox.State
}

func index(steps []string, name string) int { return slices.Index(steps, name) }

func abandonCases() []abandonCase {
	bare := func(*world) {}
	cycle := func(w *world) { pause(w.t, w.m, "a"); resume(w.t, w.m, "a") }
	paused := func(w *world) { cycle(w); pause(w.t, w.m, "a") }
	always := func(s sandbox.State) func(int, bool) sandbox.State { return func(int, bool) sandbox.State { return s } }
	ctx := context.Background()
	doPause := func(w *world) { _, _ = w.m.Pause(ctx, "a", false) }
	doResume := func(w *world) { _, _ = w.m.Resume(ctx, "a", time.Hour, false, false) }
	doSnapshot := func(w *world) { _, _, _ = w.m.Snapshot(ctx, "a", "snap") }
	doDestroy := func(w *world) {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_ = w.m.Destroy(short, "a")
	}
	pauseSteps, resumeSteps := step.Names(sandbox.PauseSteps()), sandbox.ResumeSteps()
	pauseWant := func(i int, after bool) sandbox.State {
		if i == index(pauseSteps, "commit") && after {
			return sandbox.Paused
		}
		return sandbox.Running
	}
	resumeWant := func(i int, after bool) sandbox.State {
		if i == index(resumeSteps, "running") && after {
			return sandbox.Running
		}
		return sandbox.Paused
	}
	destroyWant := func(i int, after bool) sandbox.State {
		if i == 0 && !after {
			return sandbox.Paused
		}
		return sandbox.Gone
	}
	return []abandonCase{
		{sandbox.PauseAct, pauseSteps, bare, doPause, pauseWant},
		{sandbox.PauseAct, pauseSteps, cycle, doPause, pauseWant},
		{sandbox.ParkAct, sandbox.ParkSteps(), cycle, doPause, always(sandbox.Paused)},
		{sandbox.ResumeAct, resumeSteps, paused, doResume, resumeWant},
		{sandbox.SnapshotAct, step.Names(sandbox.SnapshotSteps()), bare, doSnapshot, always(sandbox.Running)},
		{sandbox.SnapshotAct, step.Names(sandbox.SnapshotSteps()), cycle, doSnapshot, always(sandbox.Running)},
		{sandbox.KeepAct, step.Names(sandbox.KeepSteps()), paused, doSnapshot, always(sandbox.Paused)},
		{sandbox.DestroyAct, sandbox.DestroySteps(), paused, doDestroy, destroyWant},
	}
}

// TestF01_AbandonedAtEveryStep is F01's matrix of pauses, resumes and snapshots, on parts in memory: the agent
// ends before or after each step, or the step fails, and whatever had been acknowledged is there.
func TestF01_AbandonedAtEveryStep(t *testing.T) {
	for n, c := range abandonCases() {
		for i, name := range c.steps {
			for _, moment := range []string{"before", "after"} {
				t.Run(fmt.Sprintf("%d %s %s %s", n, c.act, moment, name), func(t *testing.T) {
					w := newWorld(t)
					create(t, w.m, "a")
					create(t, w.m, "neighbour")
					require.NoError(t, w.h.Write("a", "k", "old"))
					c.setup(w)
					if w.state("a") == sandbox.Running {
						require.NoError(t, w.h.Write("a", "k", "v"))
					}
					want := "v"
					if w.state("a") == sandbox.Paused {
						want = "old"
					}
					where := fmt.Sprintf("%s/%s %s", c.act, name, moment)
					w.arm(where + " abandon 1")
					c.do(w)
					require.True(t, w.fired(where+" abandon"), "the fault did not come")
					w.arm("")
					for range 2 { // a second restart changes nothing
						w.restart()
						require.Equal(t, c.want(i, moment == "after"), w.state("a"))
					}
					w.whole("a", want)
					w.whole("neighbour", "")
				})
			}
		}
	}
}

// TestS08_WhatAResumeLeavesHalfWayIsNotTrusted: nobody has seen whether the layers were right that it was made of.
func TestS08_WhatAResumeLeavesHalfWayIsNotTrusted(t *testing.T) {
	w := newWorld(t)
	create(t, w.m, "a")
	pause(t, w.m, "a")
	where := sandbox.ResumeAct + "/vmm after"
	w.arm(where + " abandon 1")
	_, _ = w.m.Resume(t.Context(), "a", time.Hour, false, false)
	require.True(t, w.fired(where+" abandon"), "the fault did not come")
	w.arm("")
	flat := filepath.Join(w.cfg.Dir, "a", snapshot.FlatName)
	require.FileExists(t, flat)
	w.restart()
	require.Equal(t, sandbox.Paused, w.state("a"))
	assert.NoFileExists(t, flat)
	resume(t, w.m, "a")
}

// whole asserts that a sandbox has its content, also after it was paused and resumed once more, as have those
// that are made of a snapshot that is there.
func (w *world) whole(id, want string) {
	w.t.Helper()
	ids := []string{id}
	if list, err := w.m.ListSnapshots(); err == nil && len(list) > 0 && id == "a" {
		_, err := w.m.Create(w.t.Context(), sandbox.CreateRequest{ID: "clone", Snapshot: list[0].Name, Timeout: time.Hour})
		require.NoError(w.t, err)
		ids = append(ids, "clone")
	}
	for _, id := range ids {
		if w.state(id) == sandbox.Gone {
			continue
		}
		if w.state(id) == sandbox.Paused {
			resume(w.t, w.m, id)
		}
		if want != "" {
			holds(w.t, w.h, id, "k", want)
		}
		require.NoError(w.t, w.h.Write(id, "more", "m"))
		pause(w.t, w.m, id)
		resume(w.t, w.m, id)
		holds(w.t, w.h, id, "more", "m")
		if want != "" {
			holds(w.t, w.h, id, "k", want)
		}
	}
	w.settled()
}

// TestF01_AnErrorAtEveryStep: the act is undone, and abandoned at each undo.
func TestF01_AnErrorAtEveryStep(t *testing.T) {
	lists := map[string][]step.Step{sandbox.PauseAct: sandbox.PauseSteps(), sandbox.SnapshotAct: sandbox.SnapshotSteps()}
	for act, steps := range lists {
		last := steps[len(steps)-1].Name
		for _, s := range append([]step.Step{{Name: "none", Undo: func(context.Context) error { return nil }}}, steps...) {
			if s.Undo == nil {
				continue
			}
			t.Run(act+" undone "+s.Name, func(t *testing.T) {
				w := newWorld(t)
				create(t, w.m, "a")
				pause(t, w.m, "a")
				resume(t, w.m, "a")
				require.NoError(t, w.h.Write("a", "k", "v"))
				w.arm(fmt.Sprintf("%s/%s after error 1\n%s/%s undone abandon 1", act, last, act, s.Name))
				if act == sandbox.PauseAct {
					_, _ = w.m.Pause(t.Context(), "a", false)
				} else {
					_, _, _ = w.m.Snapshot(t.Context(), "a", "snap")
				}
				require.Equal(t, s.Name != "none", w.fired(fmt.Sprintf("%s/%s undone abandon", act, s.Name)))
				w.arm("")
				if s.Name != "none" {
					w.restart()
				}
				require.Equal(t, sandbox.Running, w.state("a"))
				list, err := w.m.ListSnapshots()
				require.NoError(t, err)
				if len(list) > 0 {
					require.NotEqual(t, "none", s.Name, "a snapshot that failed has left something")
				}
				w.whole("a", "v")
			})
		}
		for _, s := range steps {
			for _, moment := range []string{"before", "after"} {
				t.Run(fmt.Sprintf("%s %s %s", act, moment, s.Name), func(t *testing.T) {
					w := newWorld(t)
					create(t, w.m, "a")
					require.NoError(t, w.h.Write("a", "k", "v"))
					w.arm(fmt.Sprintf("%s/%s %s error 1", act, s.Name, moment))
					var err error
					if act == sandbox.PauseAct {
						_, err = w.m.Pause(t.Context(), "a", false)
					} else {
						_, _, err = w.m.Snapshot(t.Context(), "a", "snap")
					}
					require.ErrorContains(t, err, "step "+s.Name)
					require.Equal(t, sandbox.Running, w.state("a"))
					w.settled()
					list, err := w.m.ListSnapshots()
					require.NoError(t, err)
					require.Empty(t, list)
					w.whole("a", "v")
				})
			}
		}
	}
	for i, name := range sandbox.ResumeSteps() {
		for _, moment := range []string{"before", "after"} {
			t.Run(fmt.Sprintf("%s %s %s", sandbox.ResumeAct, moment, name), func(t *testing.T) {
				w := newWorld(t)
				create(t, w.m, "a")
				require.NoError(t, w.h.Write("a", "k", "v"))
				pause(t, w.m, "a")
				w.arm(fmt.Sprintf("%s/%s %s error 1", sandbox.ResumeAct, name, moment))
				_, err := w.m.Resume(t.Context(), "a", time.Hour, false, false)
				require.ErrorContains(t, err, "step "+name, "%d", i)
				require.Equal(t, sandbox.Paused, w.state("a"))
				w.settled()
				w.whole("a", "v")
			})
		}
	}
}

// TestF01_AChainThatWasHalfLinkedIsNotTrusted: the agent dies in the middle of the step that puts the layers
// under a machine again, whose VMM counts changed pages from the last of them on.
func TestF01_AChainThatWasHalfLinkedIsNotTrusted(t *testing.T) {
	w := newWorld(t)
	create(t, w.m, "a")
	pause(t, w.m, "a")
	resume(t, w.m, "a")
	require.NoError(t, w.h.Write("a", "k", "v"))
	w.arm(sandbox.SnapshotAct + "/chain after abandon 1")
	_, _, _ = w.m.Snapshot(t.Context(), "a", "snap")
	w.arm("")
	chain := filepath.Join(w.cfg.Dir, "a", "memory")
	for _, name := range []string{snapshot.LayerName(1), snapshot.HeaderName(1)} {
		require.NoError(t, os.Remove(filepath.Join(chain, name)))
	}
	w.restart()
	w.whole("a", "v")
}

// TestF01_AWakeThatIsAbandonedIsBegunAgain: the agent dies in a pause, and the next one while it lets the
// sandbox go on.
func TestF01_AWakeThatIsAbandonedIsBegunAgain(t *testing.T) {
	for _, name := range sandbox.WakeSteps() {
		for _, moment := range []string{"before", "after"} {
			t.Run(name+" "+moment, func(t *testing.T) {
				w := newWorld(t)
				create(t, w.m, "a")
				require.NoError(t, w.h.Write("a", "k", "v"))
				w.arm(sandbox.PauseAct + "/seal after abandon 1")
				_, _ = w.m.Pause(t.Context(), "a", false)
				require.NoError(t, w.m.Close(t.Context(), false))
				where := fmt.Sprintf("%s/%s %s", sandbox.WakeAct, name, moment)
				w.arm(where + " abandon 1")
				w.h.Restart()
				var err error
				w.m, err = sandbox.NewManager(w.cfg)
				require.NoError(t, err)
				_, err = w.m.Recover()
				require.NoError(t, err)
				require.Eventually(t, func() bool { return w.fired(where + " abandon") }, 10*time.Second, time.Millisecond)
				w.arm("")
				w.restart()
				require.Equal(t, sandbox.Running, w.state("a"))
				w.whole("a", "v")
			})
		}
	}
}
