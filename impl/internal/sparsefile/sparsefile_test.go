package sparsefile_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/internal/sparsefile"
	"wrenn/impl/need"
)

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

func allocated(t testing.TB, path string) int64 {
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestS04_CopyKeepsHolesAndContent(t *testing.T) {
	dir := t.TempDir()
	for name, offsets := range map[string][]int64{
		"empty": nil, "start": {0}, "end": {16<<20 - 64<<10}, "scattered": {0, 1 << 20, 5 << 20, 9<<20 + 4096},
	} {
		src, dst := filepath.Join(dir, name), filepath.Join(dir, name+"-copy")
		sparseFile(t, src, offsets...)
		require.NoError(t, sparsefile.Copy(t.Context(), src, dst))
		want, err := os.ReadFile(src)
		require.NoError(t, err)
		got, err := os.ReadFile(dst)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want, got), name)
		assert.LessOrEqual(t, allocated(t, dst), allocated(t, src)+64<<10, name)
	}
}

func TestCopyThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	sparseFile(t, src, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dst := filepath.Join(dir, "dst")
	require.ErrorIs(t, sparsefile.Copy(ctx, src, dst), context.Canceled)
	assert.NoFileExists(t, dst)
	require.NoError(t, os.WriteFile(dst, []byte("mine"), 0o600))
	require.Error(t, sparsefile.Copy(t.Context(), src, dst), "an existing file is not overwritten")
	got, err := os.ReadFile(dst)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(got))
}

func TestCopyToAFullDiskSaysSo(t *testing.T) {
	need.Root(t)
	src, small := filepath.Join(t.TempDir(), "src"), t.TempDir()
	sparseFile(t, src, 0, 1<<20, 2<<20)
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(small, 0)) })
	dst := filepath.Join(small, "dst")
	require.ErrorIs(t, sparsefile.Copy(t.Context(), src, dst), sparsefile.ErrNoSpace)
	assert.NoFileExists(t, dst)
}
