package sandboxtest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
)

// clockSlack is how far a guest's clock may be off after a resume.
const clockSlack = 500 * time.Millisecond

func (s *suite) pause(t *testing.T, id string, filesOnly bool) sandbox.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	out, err := s.manager.Pause(ctx, id, filesOnly)
	require.NoError(t, err)
	require.Equal(t, sandbox.Paused, out.Info.State)
	return out
}

func (s *suite) resume(t *testing.T, id string) sandbox.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	out, err := s.manager.Resume(ctx, id, time.Hour, false, false)
	require.NoError(t, err)
	require.Equal(t, sandbox.Running, out.Info.State)
	return out
}

// holds asserts what the guest's program finds in memory and on disk.
func (s *suite) holds(t *testing.T, id, key, want string) {
	t.Helper()
	inMemory, onDisk := s.Read(t, id, key)
	assert.Equal(t, want, inMemory, "%s of %s in memory", key, id)
	assert.Equal(t, want, onDisk, "%s of %s on disk", key, id)
}

func (s *suite) sameAs(t *testing.T, id string, before Self) {
	t.Helper()
	asked := time.Now()
	now := s.Self(t, id)
	assert.WithinRange(t, now.Clock, asked.Add(-clockSlack), time.Now().Add(clockSlack), "the guest's clock")
	assert.Equal(t, before.PID, now.PID, "the process has another pid")
	assert.Equal(t, before.Hostname, now.Hostname)
	assert.Equal(t, before.MachineID, now.MachineID)
	assert.NotEqual(t, before.Random, now.Random)
}

func names(stages []sandbox.Stage) []string {
	out := make([]string, 0, len(stages))
	for _, s := range stages {
		out = append(out, s.Name)
	}
	return out
}

func testPauseResume(t *testing.T, s *suite) {
	id := s.create(t, s.request()).ID
	self := s.Self(t, id)
	s.Write(t, id, "stays", "from the start")
	for i, value := range []string{"one", "two", "three"} {
		s.Write(t, id, "changes", value)
		s.Write(t, id, "comes and goes", []string{"there", ""}[i%2])
		out := s.pause(t, id, false)
		assert.Subset(t, names(out.Phases), []string{"freeze", "vcpus", "memory", "disk", "seal", "commit", "park"})
		assert.EqualValues(t, i+1, out.Info.Generation)
		assert.Zero(t, out.Info.Slot)
		assert.WithinDuration(t, time.Now(), out.Info.PausedAt, s.Patience)
		assert.Equal(t, s.before, s.Census(t), "a paused sandbox holds on to the host")
		time.Sleep(clockSlack + 100*time.Millisecond)
		out = s.resume(t, id)
		assert.True(t, out.Resumed)
		assert.Equal(t, sandbox.Restored, out.Info.BootPath)
		assert.Zero(t, out.Info.PausedAt)
		assert.Subset(t, names(out.Phases), []string{"load", "disk", "network", "vmm", "vcpus", "guest"})
		assert.WithinDuration(t, time.Now().Add(time.Hour), out.Info.Deadline, s.Patience)
		s.sameAs(t, id, self)
		s.holds(t, id, "stays", "from the start")
		s.holds(t, id, "changes", value)
		s.holds(t, id, "comes and goes", []string{"there", ""}[i%2])
	}
	used, err := s.manager.DiskUsed(id)
	require.NoError(t, err)
	assert.Positive(t, used)
	out := s.resume(t, id)
	assert.False(t, out.Resumed, "it ran already")
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	out, err = s.manager.Resume(ctx, id, time.Minute, true, false)
	require.NoError(t, err)
	assert.Greater(t, time.Until(out.Info.Deadline), 30*time.Minute, "extend only must not shorten")
	s.Crash(t, id)
	require.Eventually(t, func() bool {
		info, err := s.manager.Get(id)
		return err == nil && info.State == sandbox.Failed && info.Slot == 0
	}, s.Patience, 10*time.Millisecond, "a sandbox that had been resumed and died is not failed")
	_, err = s.manager.Resume(t.Context(), id, time.Hour, false, false)
	require.ErrorIs(t, err, sandbox.ErrConflict, "it may not go back to the snapshot that it was resumed from")
}

func testPausedSurvives(t *testing.T, s *suite) {
	id := s.create(t, s.request()).ID
	self := s.Self(t, id)
	s.Write(t, id, "k", "v")
	s.pause(t, id, false)
	for range 2 {
		require.NoError(t, s.manager.Close(t.Context(), false))
		if s.Restart != nil {
			s.Restart()
		}
		s.start(t)
		info, err := s.manager.Get(id)
		require.NoError(t, err)
		assert.Equal(t, sandbox.Paused, info.State)
		assert.Equal(t, s.before, s.Census(t))
	}
	s.resume(t, id)
	s.holds(t, id, "k", "v")
	s.sameAs(t, id, self)
	require.NoError(t, s.manager.Close(t.Context(), false))
	if s.Restart != nil {
		s.Restart()
	}
	s.start(t)
	s.holds(t, id, "k", "v")
	s.Write(t, id, "k", "w")
	s.pause(t, id, false)
	s.resume(t, id)
	s.holds(t, id, "k", "w")
}

func testFilesOnly(t *testing.T, s *suite) {
	id := s.create(t, s.request()).ID
	s.Write(t, id, "k", "v")
	s.pause(t, id, true)
	assert.Equal(t, s.before, s.Census(t))
	out := s.resume(t, id)
	assert.Equal(t, sandbox.Cold, out.Info.BootPath)
	inMemory, onDisk := s.Read(t, id, "k")
	assert.Empty(t, inMemory)
	assert.Equal(t, "v", onDisk)
	s.Write(t, id, "k", "w")
	s.pause(t, id, false)
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	_, err := s.manager.Resume(ctx, id, time.Hour, false, true)
	require.NoError(t, err)
	inMemory, onDisk = s.Read(t, id, "k")
	assert.Empty(t, inMemory, "memory was to be left aside")
	assert.Equal(t, "w", onDisk)
}

// clone creates a sandbox from a snapshot.
func (s *suite) clone(t *testing.T, name string) sandbox.Info {
	t.Helper()
	req := s.request()
	req.Template, req.Snapshot, req.AccessToken = "", name, "another"
	info := s.create(t, req)
	assert.Equal(t, name, info.Snapshot)
	return info
}

func testSnapshots(t *testing.T, s *suite) {
	id := s.create(t, s.request()).ID
	self := s.Self(t, id)
	s.Write(t, id, "k", "at the snapshot")
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	snap, phases, err := s.manager.Snapshot(ctx, id, "Snap.1")
	require.NoError(t, err)
	assert.Equal(t, "Snap.1", snap.Name)
	assert.Equal(t, id, snap.Sandbox)
	assert.Positive(t, snap.SizeBytes)
	assert.Zero(t, snap.Users)
	assert.Subset(t, names(phases), []string{"freeze", "vcpus", "memory", "disk", "seal", "commit", "go", "thaw"})
	s.sameAs(t, id, self)
	s.Write(t, id, "k", "afterwards")
	_, _, err = s.manager.Snapshot(ctx, id, "Snap.1")
	require.ErrorIs(t, err, sandbox.ErrSnapshotExists)

	var clones [2]sandbox.Info
	var wg sync.WaitGroup
	reqs := [2]sandbox.CreateRequest{s.request(), s.request()}
	for i := range clones {
		wg.Go(func() {
			req := reqs[i]
			req.Template, req.Snapshot, req.AccessToken = "", "Snap.1", "another"
			var err error
			clones[i], err = s.manager.Create(ctx, req)
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	selves := []Self{s.Self(t, id)}
	for _, c := range clones {
		assert.Equal(t, sandbox.Restored, c.BootPath)
		assert.Equal(t, "base", c.Template)
		s.holds(t, c.ID, "k", "at the snapshot")
		asked := time.Now()
		me := s.Self(t, c.ID)
		assert.Equal(t, c.ID, me.Hostname)
		assert.Equal(t, self.PID, me.PID)
		assert.WithinRange(t, me.Clock, asked.Add(-clockSlack), time.Now().Add(clockSlack))
		for _, other := range selves {
			assert.NotEqual(t, other.MachineID, me.MachineID)
			assert.NotEqual(t, other.Random, me.Random)
			assert.NotEqual(t, other.Hostname, me.Hostname)
		}
		selves = append(selves, me)
	}
	s.holds(t, id, "k", "afterwards")

	require.ErrorIs(t, s.manager.DeleteSnapshot("Snap.1", false), sandbox.ErrSnapshotUsed)
	list, err := s.manager.ListSnapshots()
	require.NoError(t, err)
	require.Len(t, list, 1)
	assert.Equal(t, 2, list[0].Users)
	require.NoError(t, s.manager.DeleteSnapshot("Snap.1", true))
	require.ErrorIs(t, s.manager.DeleteSnapshot("Snap.1", true), sandbox.ErrNoSnapshot)
	req := s.request()
	req.Snapshot = "Snap.1"
	_, err = s.manager.Create(ctx, req)
	require.ErrorIs(t, err, sandbox.ErrNoSnapshot)

	// They have what they need: of the source, and of one that was created from what is now gone.
	for _, one := range []string{id, clones[0].ID} {
		s.Write(t, one, "own", "of "+one)
		s.pause(t, one, false)
		s.resume(t, one)
		s.holds(t, one, "own", "of "+one)
	}
	s.holds(t, id, "k", "afterwards")
	s.holds(t, clones[0].ID, "k", "at the snapshot")
}

func testSnapshotOfPaused(t *testing.T, s *suite) {
	id := s.create(t, s.request()).ID
	s.Write(t, id, "k", "v")
	s.pause(t, id, false)
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	_, _, err := s.manager.Snapshot(ctx, id, "kept")
	require.NoError(t, err)
	info, err := s.manager.Get(id)
	require.NoError(t, err)
	assert.Equal(t, sandbox.Paused, info.State)
	s.resume(t, id)
	s.Write(t, id, "k", "w")
	s.pause(t, id, false)
	require.NoError(t, s.manager.Destroy(ctx, id))
	require.NoError(t, s.manager.Close(ctx, false))
	if s.Restart != nil {
		s.Restart()
	}
	s.start(t)
	clone := s.clone(t, "kept")
	s.holds(t, clone.ID, "k", "v")
	require.NoError(t, s.manager.Destroy(ctx, clone.ID))
	require.NoError(t, s.manager.DeleteSnapshot("kept", false))
}

func testPauseAtDeadline(t *testing.T, s *suite) {
	req := s.request()
	req.Lifecycle.PauseOnTimeout = true
	id := s.create(t, req).ID
	s.Write(t, id, "k", "v")
	_, err := s.manager.SetDeadline(t.Context(), id, time.Second, false)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		info, err := s.manager.Get(id)
		return err == nil && info.State == sandbox.Paused && info.Slot == 0
	}, s.Patience, 10*time.Millisecond, "it was not paused")
	_, err = s.manager.SetDeadline(t.Context(), id, time.Hour, false)
	require.ErrorIs(t, err, sandbox.ErrConflict)
	s.resume(t, id)
	s.holds(t, id, "k", "v")
}

// testAtOnce lets acts run into each other: each has one clear outcome, and nothing leaks.
func testAtOnce(t *testing.T, s *suite) {
	id := s.create(t, s.request()).ID
	s.Write(t, id, "k", "v")
	ctx, cancel := context.WithTimeout(t.Context(), 2*s.Patience)
	defer cancel()
	count := func(n int, do func() error) (won int) {
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { errs[i] = do() })
		}
		wg.Wait()
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			assert.ErrorIs(t, err, sandbox.ErrConflict)
		}
		return won
	}
	assert.Equal(t, 1, count(3, func() error { _, err := s.manager.Pause(ctx, id, false); return err }))
	assert.Equal(t, 3, count(3, func() error { _, err := s.manager.Resume(ctx, id, time.Hour, false, false); return err }))
	s.holds(t, id, "k", "v")

	for _, act := range []func() error{
		func() error { _, err := s.manager.Pause(ctx, id, false); return err },
		func() error { _, err := s.manager.Resume(ctx, id, time.Hour, false, false); return err },
		func() error { _, _, err := s.manager.Snapshot(ctx, id, "during"); return err },
	} {
		id = s.create(t, s.request()).ID
		done := make(chan error, 1)
		go func() { done <- act() }()
		require.NoError(t, s.manager.Destroy(ctx, id))
		if err := <-done; err != nil && !errors.Is(err, sandbox.ErrNotFound) {
			assert.ErrorIs(t, err, sandbox.ErrConflict)
		}
		_, err := s.manager.Get(id)
		assert.ErrorIs(t, err, sandbox.ErrNotFound)
	}
}
