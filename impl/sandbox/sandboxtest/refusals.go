package sandboxtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/snapshot"
)

func testDamaged(t *testing.T, s *suite) {
	id := s.create(t, s.request()).ID
	s.Write(t, id, "k", "v")
	s.pause(t, id, false)
	dir := filepath.Join(s.Config.Dir, id, "snapshot")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if snapshot.IsCache(e.Name()) {
			flip(t, path) // and nobody minds
			continue
		}
		flip(t, path)
		_, err = s.manager.Resume(t.Context(), id, time.Hour, false, false)
		require.ErrorIs(t, err, snapshot.ErrDamaged, "%s", e.Name())
		assert.ErrorContains(t, err, path)
		info, err := s.manager.Get(id)
		require.NoError(t, err)
		assert.Equal(t, sandbox.Paused, info.State)
		assert.Equal(t, s.before, s.Census(t), "a resume that was refused holds on to the host")
		flip(t, path)
	}
	s.resume(t, id)
	s.holds(t, id, "k", "v")
}

// flip changes a bit of the first byte that is not zero, or changes it back.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, 1<<20)
	n, err := f.ReadAt(buf, 0)
	require.True(t, n > 0, "%v", err)
	at := 0
	for i, b := range buf[:n] {
		if b != 0 {
			at = i
			break
		}
	}
	_, err = f.WriteAt([]byte{buf[at] ^ 0x40}, int64(at))
	require.NoError(t, err)
}

func testPauseRefusals(t *testing.T, s *suite) {
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	for _, id := range []string{"../x", "", "A"} {
		_, err := s.manager.Pause(ctx, id, false)
		require.ErrorIs(t, err, sandbox.ErrInvalid)
		_, err = s.manager.Resume(ctx, id, time.Hour, false, false)
		require.ErrorIs(t, err, sandbox.ErrInvalid)
		_, _, err = s.manager.Snapshot(ctx, id, "ok")
		require.ErrorIs(t, err, sandbox.ErrInvalid)
	}
	_, err := s.manager.Pause(ctx, "nosuch", false)
	require.ErrorIs(t, err, sandbox.ErrNotFound)
	_, err = s.manager.Resume(ctx, "nosuch", time.Hour, false, false)
	require.ErrorIs(t, err, sandbox.ErrNotFound)
	_, err = s.manager.Resume(ctx, "nosuch", 0, false, false)
	require.ErrorIs(t, err, sandbox.ErrInvalid)
	for _, name := range []string{"../x", "", ".new-a", "a/b", "%2e%2e", "a\x00"} {
		_, _, err = s.manager.Snapshot(ctx, "nosuch", name)
		require.ErrorIs(t, err, sandbox.ErrInvalid, "%q", name)
		require.ErrorIs(t, s.manager.DeleteSnapshot(name, true), sandbox.ErrInvalid, "%q", name)
		if name != "" {
			req := s.request()
			req.Snapshot = name
			_, err = s.manager.Create(ctx, req)
			require.ErrorIs(t, err, sandbox.ErrInvalid, "%q", name)
		}
	}
	require.ErrorIs(t, s.manager.DeleteSnapshot("nosuch", true), sandbox.ErrNoSnapshot)
	req := s.request()
	req.DiskMiB = 1
	_, err = s.manager.Create(ctx, req)
	require.ErrorIs(t, err, sandbox.ErrInvalid)
}
