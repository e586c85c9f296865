package filesystem

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

const deadline = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type watched struct {
	*watch
	t    *testing.T
	seen []Change
}

func startWatch(t *testing.T, dir string, recursive bool) *watched {
	t.Helper()
	w, err := newWatch(dir, recursive)
	require.NoError(t, err)
	t.Cleanup(w.close)
	return &watched{watch: w, t: t}
}

// until reads changes up to want.
func (w *watched) until(op Op, name string) {
	w.t.Helper()
	late := time.After(deadline)
	for {
		select {
		case c, ok := <-w.changes:
			require.True(w.t, ok, "the watch ended: %v", w.err)
			w.seen = append(w.seen, c)
			if c == (Change{Name: name, Op: op}) {
				return
			}
		case <-late:
			require.Fail(w.t, "never seen", "%d %q in %v", op, name, w.seen)
		}
	}
}

func (w *watched) count(op Op, name string) int {
	n := 0
	for _, c := range w.seen {
		if c == (Change{Name: name, Op: op}) {
			n++
		}
	}
	return n
}

func write(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(parts...)
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o644))
	return path
}

func TestG03_WatchTellsEveryKindOfChange(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	w := startWatch(t, dir, false)
	f := write(t, dir, "f")
	w.until(Create, "f")
	w.until(Write, "f")
	require.NoError(t, os.Chmod(f, 0o600))
	w.until(Chmod, "f")
	require.NoError(t, os.Rename(f, filepath.Join(dir, "g")))
	w.until(Rename, "f")
	w.until(Create, "g")
	write(t, dir, "sub", "deep")
	require.NoError(t, os.Remove(filepath.Join(dir, "g")))
	w.until(Remove, "g")
	assert.Zero(t, w.count(Create, "sub/deep"))
}

func TestG03_RecursiveWatchFollowsNewDirectories(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "old/er"), 0o755))
	w := startWatch(t, dir, true)
	write(t, dir, "old/er/f")
	w.until(Create, "old/er/f")
	// Each of these files is made as soon as its directory is, often before anybody could watch it.
	for i := range 100 {
		deep := fmt.Sprintf("new%d/a/b", i)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, deep), 0o755))
		write(t, dir, deep, "f")
	}
	for i := range 100 {
		last := fmt.Sprintf("new%d/a/b/f", i)
		if w.count(Create, last) == 0 {
			w.until(Create, last)
		}
	}
	write(t, dir, "end")
	w.until(Create, "end")
	for i := range 100 {
		for _, name := range []string{"new%d", "new%d/a", "new%d/a/b", "new%d/a/b/f"} {
			name = fmt.Sprintf(name, i)
			assert.Equal(t, 1, w.count(Create, name), name)
		}
	}
}

func TestG03_RecursiveWatchFollowsRenamesAndRemovals(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	w := startWatch(t, dir, true)
	require.NoError(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "z")))
	w.until(Rename, "a")
	w.until(Create, "z")
	// Watches on the moved directory are in place a moment after its Create.
	require.Eventually(t, func() bool {
		write(t, dir, "z/b/f")
		select {
		case c := <-w.changes:
			w.seen = append(w.seen, c)
			return filepath.Base(c.Name) == "f"
		case <-time.After(50 * time.Millisecond):
			return false
		}
	}, deadline, time.Millisecond)
	assert.Equal(t, "z/b/f", w.seen[len(w.seen)-1].Name)
	require.NoError(t, os.Rename(filepath.Join(dir, "z"), filepath.Join(outside, "z")))
	w.until(Rename, "z")
	write(t, outside, "z/b/g")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "z/b"), 0o755))
	w.until(Create, "z")
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "z")))
	w.until(Remove, "z")
	write(t, dir, "end")
	w.until(Create, "end")
	assert.Zero(t, w.count(Create, "z/b/g"), "what was moved away is watched no more")
}

func TestG03_WatchEndsWithItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	require.NoError(t, os.Mkdir(dir, 0o755))
	w := startWatch(t, dir, true)
	require.NoError(t, os.Remove(dir))
	assert.Eventually(t, func() bool {
		select {
		case _, ok := <-w.changes:
			return !ok
		default:
			return false
		}
	}, deadline, time.Millisecond)
	require.ErrorIs(t, w.err, ErrRootGone)
}

func TestT05_WatchThatNobodyReadsEndsWithAnError(t *testing.T) {
	dir := t.TempDir()
	w := startWatch(t, dir, false)
	f := filepath.Join(dir, "f")
	for range 400 {
		write(t, f)
		require.NoError(t, os.Remove(f))
	}
	select {
	case <-w.lost:
	case <-time.After(deadline):
		require.Fail(t, "the watch still waits for its reader")
	}
	n := 0
	for range w.changes {
		n++
	}
	assert.Equal(t, queueLen, n)
	require.ErrorIs(t, w.err, ErrLost)
}

func TestWatchesLeaveNothingOpen(t *testing.T) {
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(d)
	}
	dir := t.TempDir()
	before := count()
	for range 20 {
		w, err := newWatch(dir, true)
		require.NoError(t, err)
		w.close()
		w.close()
	}
	_, err := newWatch(filepath.Join(dir, "none"), true)
	require.Error(t, err)
	assert.Equal(t, before, count())
}
