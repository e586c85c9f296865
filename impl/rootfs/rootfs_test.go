package rootfs

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sparseFile writes 64 KiB of noise at each offset into a file of 16 MiB.
func sparseFile(t testing.TB, path string, offsets ...int64) {
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(16<<20))
	noise := make([]byte, 64<<10)
	random := rand.NewChaCha8([32]byte{1})
	for _, off := range offsets {
		_, err := random.Read(noise)
		require.NoError(t, err)
		_, err = f.WriteAt(noise, off)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
}

func newStore(t testing.TB, ready int) (*Store, string) {
	dir := t.TempDir()
	base := filepath.Join(dir, "image", "templates", "base")
	require.NoError(t, os.MkdirAll(base, 0o700))
	sparseFile(t, filepath.Join(base, templateDisk), 0, 8<<20)
	require.NoError(t, os.WriteFile(filepath.Join(base, templateMeta), []byte(`{"name":"base","vcpus":1,"memoryMib":512,"diskMib":16}`), 0o600))
	s, err := NewStore(Config{
		ImageDir: filepath.Join(dir, "image"), Dir: filepath.Join(dir, "disks"), Mode: ModeCopy, Ready: ready, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s, dir
}

// sandboxDir makes the directory of a sandbox.
func sandboxDir(t testing.TB, dir, id string) string {
	t.Helper()
	path := filepath.Join(dir, id)
	require.NoError(t, os.MkdirAll(path, 0o700))
	return path
}

func TestV01_TemplateNamesAreChecked(t *testing.T) {
	s, dir := newStore(t, 0)
	require.NoError(t, os.Symlink("/etc", filepath.Join(dir, "image", "templates", "escape")))
	for _, name := range []string{"../x", "..", "%2e%2e", "a\x00", "/etc", "", string(bytes.Repeat([]byte("a"), 65))} {
		_, err := s.Template(name)
		require.ErrorContains(t, err, "invalid name", "%q", name)
		require.Error(t, s.Create(t.Context(), name, sandboxDir(t, dir, "d"), 0))
	}
	for _, name := range []string{"nosuch", "escape"} {
		_, err := s.Template(name)
		require.Error(t, err, name)
	}
	_, err := s.Template("nosuch")
	require.ErrorIs(t, err, ErrNoTemplate)
	names, err := s.Templates()
	require.NoError(t, err)
	assert.Equal(t, []string{"base"}, names)
	got, err := s.Template("base")
	require.NoError(t, err)
	assert.Equal(t, 512, got.MemoryMiB)
}

func TestReadyDisksAreHandedOutOnce(t *testing.T) {
	s, dir := newStore(t, 3)
	s.Fill("base")
	full := func() bool {
		entries, err := filepath.Glob(filepath.Join(dir, "disks", "ready", "base@*[0-9]"))
		require.NoError(t, err)
		return len(entries) == 3
	}
	require.Eventually(t, full, 20*time.Second, 5*time.Millisecond)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { assert.NoError(t, s.Create(t.Context(), "base", sandboxDir(t, dir, fmt.Sprint("disk", i)), 0)) })
	}
	wg.Wait()
	want, err := os.ReadFile(filepath.Join(dir, "image", "templates", "base", templateDisk))
	require.NoError(t, err)
	for i := range 8 {
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("disk", i), DiskName))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want, got), "disk %d", i)
	}
	require.Eventually(t, full, 20*time.Second, 5*time.Millisecond, "what was taken is not replaced")
}

// TestAFillThatIsAskedForMeanwhileIsNotLost: one that is just about to end has counted what was taken since.
func TestAFillThatIsAskedForMeanwhileIsNotLost(t *testing.T) {
	s, _ := newStore(t, 1)
	s.mu.Lock()
	s.filling["base"] = false // one is under way, and has counted
	s.mu.Unlock()
	s.Fill("base")
	assert.True(t, s.wanted("base"), "lost")
	assert.False(t, s.wanted("base"), "asked for once")
	assert.Empty(t, s.filling)
}

func TestARebuiltTemplateRetiresReadyDisks(t *testing.T) {
	s, dir := newStore(t, 1)
	s.Fill("base")
	glob := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, "disks", "ready", "base@*[0-9]"))
		require.NoError(t, err)
		return found
	}
	require.Eventually(t, func() bool { return len(glob()) == 1 }, 20*time.Second, 5*time.Millisecond)
	old := glob()[0]
	disk := filepath.Join(dir, "image", "templates", "base", templateDisk)
	require.NoError(t, os.Remove(disk))
	sparseFile(t, disk, 4<<20)
	require.NoError(t, s.Create(t.Context(), "base", sandboxDir(t, dir, "d"), 0))
	want, err := os.ReadFile(disk)
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(dir, "d", DiskName))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got), "a disk of the old template was handed out")
	assert.NoFileExists(t, old)
}

func TestDisksOfAnEarlierLifeAreNotTrusted(t *testing.T) {
	s, dir := newStore(t, 1)
	s.Fill("base")
	glob := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, "disks", "ready", "base@*[0-9]"))
		require.NoError(t, err)
		return found
	}
	require.Eventually(t, func() bool { return len(glob()) == 1 }, 20*time.Second, 5*time.Millisecond)
	s.wg.Wait() // an earlier life makes nothing any more
	torn := glob()[0]
	require.NoError(t, os.Truncate(torn, 0)) // what a crash of the host may leave
	next, err := NewStore(s.cfg)
	require.NoError(t, err)
	assert.Empty(t, glob())
	require.NoError(t, next.Close())
	assert.NoDirExists(t, filepath.Join(dir, "disks", "ready"))
}
