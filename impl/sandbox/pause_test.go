package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/snapshot"
)

// holds asserts what a guest's program finds in memory and on disk.
func holds(t *testing.T, h *sandboxtest.Host, id, key, want string) {
	t.Helper()
	inMemory, onDisk, err := h.Read(id, key)
	require.NoError(t, err)
	assert.Equal(t, want, inMemory, "%s in memory", key)
	assert.Equal(t, want, onDisk, "%s on disk", key)
}

func create(t *testing.T, m *sandbox.Manager, id string) {
	t.Helper()
	_, err := m.Create(t.Context(), request(id))
	require.NoError(t, err)
}

func pause(t *testing.T, m *sandbox.Manager, id string) sandbox.Outcome {
	t.Helper()
	out, err := m.Pause(t.Context(), id, false)
	require.NoError(t, err)
	return out
}

func resume(t *testing.T, m *sandbox.Manager, id string) {
	t.Helper()
	_, err := m.Resume(t.Context(), id, time.Hour, false, false)
	require.NoError(t, err)
}

// writeActs are the parts' acts that a pause or a snapshot can fail in, with the step that they belong to.
var writeActs = map[string]string{
	"guest.freeze": "freeze", "vmm.pause": "vcpus", "vmm.snapshot": "memory", "memory.describe": "memory", "disk.keep": "disk",
}

// TestS08_AFailedPauseLeavesItRunning fails each part of a first pause and of a later one, and shows that
// nothing is lost by the pauses that come after it.
func TestS08_AFailedPauseLeavesItRunning(t *testing.T) {
	for act, step := range writeActs {
		for _, pauses := range []int{0, 2} {
			t.Run(fmt.Sprintf("%s after %d", act, pauses), func(t *testing.T) {
				h := sandboxtest.NewHost()
				cfg := config(t, h)
				m := newManager(t, cfg)
				create(t, m, "a")
				require.NoError(t, h.Write("a", "k", "0"))
				for i := range pauses {
					require.NoError(t, h.Write("a", "k", fmt.Sprint(i)))
					pause(t, m, "a")
					resume(t, m, "a")
				}
				require.NoError(t, h.Write("a", "only once", "before the failure"))
				before := h.Census()
				boom := errors.New("boom")
				h.Fail(act, boom)
				_, err := m.Pause(t.Context(), "a", false)
				require.ErrorIs(t, err, boom)
				require.ErrorContains(t, err, "step "+step)
				_, _, err = m.Snapshot(t.Context(), "a", "snap")
				require.ErrorIs(t, err, boom)
				h.Fail(act, nil)
				info, err := m.Get("a")
				require.NoError(t, err)
				assert.Equal(t, sandbox.Running, info.State)
				assert.EqualValues(t, pauses, info.Generation)
				assert.Equal(t, before, h.Census())
				assert.NoDirExists(t, filepath.Join(cfg.Dir, "a", "snapshot.new"))
				list, err := m.ListSnapshots()
				require.NoError(t, err)
				assert.Empty(t, list)
				holds(t, h, "a", "only once", "before the failure")
				self, err := h.Self("a")
				require.NoError(t, err)
				assert.WithinDuration(t, time.Now(), self.Clock, 100*time.Millisecond)

				// What the failed one had taken from the VMM's dirty pages is not missing from the next.
				require.NoError(t, h.Write("a", "k", "afterwards"))
				pause(t, m, "a")
				resume(t, m, "a")
				holds(t, h, "a", "only once", "before the failure")
				holds(t, h, "a", "k", "afterwards")
				assert.Empty(t, h.Broken())
			})
		}
	}
}

func TestS08_AFailedRePauseLeavesTheFormerSnapshot(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m := newManager(t, cfg)
	create(t, m, "a")
	pause(t, m, "a")
	former, err := snapshot.Load(t.Context(), filepath.Join(cfg.Dir, "a", "snapshot"))
	require.NoError(t, err)
	resume(t, m, "a")
	h.Fail("disk.keep", errors.New("boom"))
	_, err = m.Pause(t.Context(), "a", false)
	require.Error(t, err)
	now, err := snapshot.Load(t.Context(), filepath.Join(cfg.Dir, "a", "snapshot"))
	require.NoError(t, err)
	assert.Equal(t, former, now)
	h.Fail("disk.keep", nil)
}

func TestS08_AFailedResumeLeavesItPaused(t *testing.T) {
	for act, step := range map[string]string{
		"memory.verify": "verify", "disk.restore": "step disk", "network.create": "step network", "memory.provide": "step memory",
		"vmm.restore": "step vmm", "vmm.resume": "step vcpus", "guest.init": "step guest", "guest.thaw": "step guest",
	} {
		t.Run(act, func(t *testing.T) {
			h := sandboxtest.NewHost()
			m := newManager(t, config(t, h))
			create(t, m, "a")
			require.NoError(t, h.Write("a", "k", "v"))
			pause(t, m, "a")
			boom := errors.New("boom")
			h.Fail(act, boom)
			_, err := m.Resume(t.Context(), "a", time.Hour, false, false)
			require.ErrorIs(t, err, boom)
			require.ErrorContains(t, err, step+": ")
			info, err := m.Get("a")
			require.NoError(t, err)
			assert.Equal(t, sandbox.Paused, info.State)
			assert.Empty(t, h.Census())
			h.Fail(act, nil)
			resume(t, m, "a")
			holds(t, h, "a", "k", "v")
			assert.Empty(t, h.Broken())
		})
	}
}

// TestA06_WhatAPauseCannotGiveBackIsTriedAgain: it is paused, and holds its slot until that is free.
func TestA06_WhatAPauseCannotGiveBackIsTriedAgain(t *testing.T) {
	for _, act := range []string{"vmm.kill", "memory.release", "disk.release", "network.remove"} {
		t.Run(act, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := sandboxtest.NewHost()
				m := newManager(t, config(t, h))
				create(t, m, "a")
				pause(t, m, "a")
				resume(t, m, "a")
				require.NoError(t, h.Write("a", "k", "v"))
				h.Fail(act, errors.New("busy"))
				out := pause(t, m, "a")
				assert.Equal(t, sandbox.Paused, out.Info.State)
				assert.NotEmpty(t, h.Census())
				_, err := m.Resume(t.Context(), "a", time.Hour, false, false)
				require.ErrorContains(t, err, "busy")
				h.Fail(act, nil)
				time.Sleep(time.Minute)
				synctest.Wait()
				assert.Empty(t, h.Census())
				resume(t, m, "a")
				holds(t, h, "a", "k", "v")
				assert.Empty(t, h.Broken())
			})
		})
	}
}

// TestS08_AMachineThatDiesWhilePausingFails: nothing older is gone back to.
func TestS08_AMachineThatDiesWhilePausingFails(t *testing.T) {
	h := sandboxtest.NewHost()
	m := newManager(t, config(t, h))
	create(t, m, "a")
	pause(t, m, "a")
	resume(t, m, "a")
	h.OnAct("vmm.snapshot", func() { assert.True(t, h.Crash("a")) })
	_, err := m.Pause(t.Context(), "a", false)
	require.ErrorContains(t, err, "failed")
	info, err := m.Get("a")
	require.NoError(t, err)
	assert.Equal(t, sandbox.Failed, info.State)
	assert.Contains(t, info.Failure, "exit status 0")
	assert.Empty(t, h.Census())
	_, err = m.Resume(t.Context(), "a", time.Hour, false, false)
	require.ErrorIs(t, err, sandbox.ErrConflict)
}

func TestS08_AMachineThatDoesNotGoOnFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sandboxtest.NewHost()
		m := newManager(t, config(t, h))
		create(t, m, "a")
		h.Fail("disk.keep", errors.New("boom"))
		h.OnAct("vmm.resume", func() { h.Stuck("a") })
		h.Fail("vmm.resume", errors.New("stuck"))
		_, err := m.Pause(t.Context(), "a", false)
		require.ErrorContains(t, err, "failed")
		h.Fail("disk.keep", nil)
		assert.Empty(t, h.Census())
	})
}

// TestS08_AGuestThatCannotBeThawedIsTriedAgain: it runs, and its processes do as soon as its daemon answers.
func TestS08_AGuestThatCannotBeThawedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sandboxtest.NewHost()
		m := newManager(t, config(t, h))
		create(t, m, "a")
		h.Fail("disk.keep", errors.New("boom"))
		h.Fail("guest.init", errors.New("busy"))
		_, err := m.Pause(t.Context(), "a", false)
		require.ErrorContains(t, err, "boom")
		info, err := m.Get("a")
		require.NoError(t, err)
		assert.Equal(t, sandbox.Running, info.State)
		require.ErrorContains(t, h.Write("a", "k", "v"), "stand still")
		_, err = m.Pause(t.Context(), "a", false)
		require.ErrorIs(t, err, sandbox.ErrConflict)
		h.Fail("disk.keep", nil)
		h.Fail("guest.init", nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.NoError(t, h.Write("a", "k", "v"))
		pause(t, m, "a")
		resume(t, m, "a")
		holds(t, h, "a", "k", "v")
	})
}

// TestA02_AGuestCannotProlongItsTimeByNotFreezing: at the second try it is paused as it is.
func TestA02_AGuestCannotProlongItsTimeByNotFreezing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sandboxtest.NewHost()
		m := newManager(t, config(t, h))
		req := request("a")
		req.Timeout, req.Lifecycle.PauseOnTimeout = 10*time.Second, true
		_, err := m.Create(t.Context(), req)
		require.NoError(t, err)
		h.Fail("guest.freeze", errors.New("no"))
		time.Sleep(time.Minute)
		synctest.Wait()
		info, err := m.Get("a")
		require.NoError(t, err)
		assert.Equal(t, sandbox.Paused, info.State)
		assert.Empty(t, h.Census())
	})
}

// TestA02_APauseAtTheDeadlineIsTriedUntilItSucceeds, and a new deadline stops it.
func TestA02_APauseAtTheDeadlineIsTriedUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sandboxtest.NewHost()
		m := newManager(t, config(t, h))
		req := request("a")
		req.Timeout, req.Lifecycle.PauseOnTimeout = 10*time.Second, true
		_, err := m.Create(t.Context(), req)
		require.NoError(t, err)
		h.Fail("disk.keep", errors.New("no space"))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		info, err := m.Get("a")
		require.NoError(t, err)
		assert.Equal(t, sandbox.Running, info.State)
		require.NoError(t, h.Write("a", "k", "v"))
		_, err = m.SetDeadline(t.Context(), "a", time.Hour, false)
		require.NoError(t, err)
		h.Fail("disk.keep", nil)
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		info, err = m.Get("a")
		require.NoError(t, err)
		assert.Equal(t, sandbox.Running, info.State)
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		info, err = m.Get("a")
		require.NoError(t, err)
		assert.Equal(t, sandbox.Paused, info.State)
		time.Sleep(1000 * time.Hour)
		synctest.Wait()
		_, err = m.Get("a")
		require.NoError(t, err, "a paused sandbox burns its time")
	})
}

func TestA06_ACallerThatGoesAwayUndoesItsPause(t *testing.T) {
	h := sandboxtest.NewHost()
	m := newManager(t, config(t, h))
	create(t, m, "a")
	ctx, cancel := context.WithCancel(t.Context())
	h.OnAct("vmm.snapshot", func() { cancel(); time.Sleep(100 * time.Millisecond) }) // it is passed on by a goroutine
	_, err := m.Pause(ctx, "a", false)
	require.ErrorIs(t, err, context.Canceled)
	info, err := m.Get("a")
	require.NoError(t, err)
	assert.Equal(t, sandbox.Running, info.State)
	require.NoError(t, h.Write("a", "k", "v"))
}

// TestA06_DestroyEndsAPauseUnderWay, a resume and a snapshot, which get a clear conflict.
func TestA06_DestroyEndsAnActUnderWay(t *testing.T) {
	for name, c := range map[string]struct {
		act   string
		pause bool
		do    func(m *sandbox.Manager) error
	}{
		"pause":    {"vmm.snapshot", false, func(m *sandbox.Manager) error { _, err := m.Pause(context.Background(), "a", false); return err }},
		"snapshot": {"vmm.snapshot", false, func(m *sandbox.Manager) error { _, _, err := m.Snapshot(context.Background(), "a", "s"); return err }},
		"resume": {"vmm.restore", true, func(m *sandbox.Manager) error {
			_, err := m.Resume(context.Background(), "a", time.Hour, false, false)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := sandboxtest.NewHost()
			m := newManager(t, config(t, h))
			create(t, m, "a")
			if c.pause {
				pause(t, m, "a")
			}
			destroyed := make(chan error, 1)
			h.OnAct(c.act, func() {
				go func() { destroyed <- m.Destroy(context.Background(), "a") }()
				time.Sleep(50 * time.Millisecond)
			})
			require.ErrorIs(t, c.do(m), sandbox.ErrConflict)
			require.NoError(t, <-destroyed)
			assert.Empty(t, h.Census())
			assert.Empty(t, m.List())
			list, err := m.ListSnapshots()
			require.NoError(t, err)
			assert.Empty(t, list)
		})
	}
}

func TestA06_APausedSandboxTakesNoMemoryUntilItComesBack(t *testing.T) {
	h := sandboxtest.NewHost()
	m := newManager(t, config(t, h)) // 4096 MiB
	big := request("a")
	big.MemoryMiB = 3000
	_, err := m.Create(t.Context(), big)
	require.NoError(t, err)
	other := big
	other.ID = "b"
	_, err = m.Create(t.Context(), other)
	require.ErrorIs(t, err, sandbox.ErrNoMemory)
	pause(t, m, "a")
	_, err = m.Create(t.Context(), other)
	require.NoError(t, err)
	_, err = m.Resume(t.Context(), "a", time.Hour, false, false)
	require.ErrorIs(t, err, sandbox.ErrNoMemory)
	info, err := m.Get("a")
	require.NoError(t, err)
	assert.Equal(t, sandbox.Paused, info.State)
	require.NoError(t, m.Destroy(t.Context(), "b"))
	resume(t, m, "a")
}

// TestS03_TheMachineGoesBeforeItsDisk: a disk whose machine cannot be ended stays, and every phase is told.
func TestS03_TheMachineGoesBeforeItsDisk(t *testing.T) {
	h := sandboxtest.NewHost()
	m := newManager(t, config(t, h))
	create(t, m, "a")
	h.Fail("vmm.kill", errors.New("hangs"))
	out := pause(t, m, "a")
	assert.Equal(t, sandbox.Paused, out.Info.State, "what comes after the commit is tried again")
	census := fmt.Sprint(h.Census())
	assert.Contains(t, census, "machine a")
	assert.Contains(t, census, "disk", "the disk was taken away under its machine")
	h.Fail("vmm.kill", nil)
	resume(t, m, "a")
	out = pause(t, m, "a")
	var names []string
	for _, phase := range out.Phases {
		names = append(names, phase.Name)
	}
	assert.Equal(t, []string{"intent", "freeze", "durable", "vcpus", "layers", "memory", "disk", "seal", "commit", "park"}, names)
	assert.NotContains(t, fmt.Sprint(h.Census()), "machine a")
}
