package sandbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/snapshot"
)

// TestS06_LayersAreMergedInTheBackground, and nothing is lost whether a merge comes to its end or not.
func TestS06_LayersAreMergedInTheBackground(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m := newManager(t, cfg)
	create(t, m, "a")
	layers := func(name string) int {
		n, err := snapshot.Layers(filepath.Join(cfg.Dir, "a", name))
		require.NoError(t, err)
		return n
	}
	most := 0
	for i := range 40 {
		key := fmt.Sprint("k", i%7)
		require.NoError(t, h.Write("a", key, fmt.Sprint(i)))
		require.NoError(t, h.Write("a", fmt.Sprint("k", (i+3)%7), ""))
		pause(t, m, "a")
		n := layers("snapshot")
		most = max(most, n)
		if n > 8 && i%2 == 0 {
			require.Eventually(t, func() bool { return layers("snapshot") == 1 }, 10*time.Second, time.Millisecond, "%d layers stay", n)
			_, err := snapshot.Load(t.Context(), filepath.Join(cfg.Dir, "a", "snapshot"))
			require.NoError(t, err)
		}
		resume(t, m, "a")
		holds(t, h, "a", key, fmt.Sprint(i))
		holds(t, h, "a", fmt.Sprint("k", (i+3)%7), "")
	}
	assert.GreaterOrEqual(t, most, 9)
	assert.LessOrEqual(t, most, 16)
	assert.NoDirExists(t, filepath.Join(cfg.Dir, "a", "snapshot.merge"))
	h.Fail("memory.merge", errors.New("boom"))
	for range 20 { // merges that fail do not let the chain grow for ever
		require.NoError(t, h.Write("a", "k", "v"))
		pause(t, m, "a")
		assert.LessOrEqual(t, layers("snapshot"), 16)
		resume(t, m, "a")
	}
	h.Fail("memory.merge", nil)
}

func TestF01_JournalsOfOtherVersions(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m, err := sandbox.NewManager(cfg)
	require.NoError(t, err)
	create(t, m, "a")
	require.NoError(t, m.Close(t.Context(), false))
	path := filepath.Join(cfg.Dir, "a", "journal")
	edit := func(version int) {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		var j map[string]any
		require.NoError(t, json.Unmarshal(data, &j))
		j["version"] = version
		data, err = json.Marshal(j)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	edit(3)
	h.Restart()
	m, err = sandbox.NewManager(cfg)
	require.NoError(t, err)
	_, err = m.Recover()
	require.ErrorContains(t, err, "version 3", "what a newer agent has written is not to be undone by an older one")
	assert.Contains(t, h.Census(), "machine a")
	edit(1)
	for range 2 { // also when this version has written it again
		h.Restart()
		m, err = sandbox.NewManager(cfg)
		require.NoError(t, err)
		_, err = m.Recover()
		require.NoError(t, err)
		_, err = m.SetDeadline(t.Context(), "a", time.Hour, false)
		require.NoError(t, err)
		_, err = m.Pause(t.Context(), "a", false)
		require.ErrorIs(t, err, sandbox.ErrConflict, "its machine was started without what a snapshot needs")
		require.NoError(t, m.Close(t.Context(), false))
	}
	h.Restart()
	m = newManager(t, cfg)
	_, err = m.Recover()
	require.NoError(t, err)
}

// TestF01_ASlotIsNotClaimedForOneThatHasGivenItBack: after a crash between the two journals of a pause.
func TestF01_APausedSandboxDoesNotClaimAnothersSlot(t *testing.T) {
	h := sandboxtest.NewHost()
	h.Slots = 1
	cfg := config(t, h)
	m, err := sandbox.NewManager(cfg)
	require.NoError(t, err)
	create(t, m, "a")
	pause(t, m, "a")
	create(t, m, "b")
	require.NoError(t, m.Close(t.Context(), false))
	h.Restart()
	m = newManager(t, cfg)
	finish, err := m.Recover()
	require.NoError(t, err)
	_, err = finish(t.Context())
	require.NoError(t, err)
	info, err := m.Get("b")
	require.NoError(t, err)
	assert.Equal(t, sandbox.Running, info.State)
	assert.Equal(t, 1, info.Slot)
	require.NoError(t, h.Write("b", "k", "v"))
}

func TestS09_ACloneOfAnotherVMMIsRefused(t *testing.T) {
	h := sandboxtest.NewHost()
	m := newManager(t, config(t, h))
	create(t, m, "a")
	pause(t, m, "a")
	h.VMMName = "fake 2.0"
	_, err := m.Resume(t.Context(), "a", time.Hour, false, false)
	require.ErrorIs(t, err, sandbox.ErrNoVMM)
	_, err = m.Resume(t.Context(), "a", time.Hour, false, true)
	require.NoError(t, err, "its files are any VMM's")
}

// TestS08_AnOlderSnapshotIsNotLoaded, nor another sandbox's, though it is whole.
func TestS08_AnOlderSnapshotIsNotLoaded(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	m := newManager(t, cfg)
	create(t, m, "a")
	create(t, m, "b")
	pause(t, m, "a")
	pause(t, m, "b")
	place := filepath.Join(cfg.Dir, "a", "snapshot")
	older := filepath.Join(t.TempDir(), "older")
	require.NoError(t, os.CopyFS(older, os.DirFS(place)))
	resume(t, m, "a")
	pause(t, m, "a")
	newest := filepath.Join(t.TempDir(), "newest")
	require.NoError(t, os.Rename(place, newest))
	for _, wrong := range []string{older, filepath.Join(cfg.Dir, "b", "snapshot")} {
		require.NoError(t, os.CopyFS(place, os.DirFS(wrong)))
		_, err := m.Resume(t.Context(), "a", time.Hour, false, false)
		require.ErrorIs(t, err, snapshot.ErrDamaged)
		require.ErrorContains(t, err, "instead of generation 2 of a")
		require.NoError(t, os.RemoveAll(place))
	}
	require.NoError(t, os.Rename(newest, place))
	resume(t, m, "a")
}
