package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

func TestAFileSystemSmallerThanItsDeviceGrows(t *testing.T) {
	need.DeviceMapper(t) // a machine of its own
	need.Program(t, "mkfs.ext4", "losetup", "e2fsck")
	tool := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		require.NoError(t, err, "%s %v: %s", name, args, out)
		return strings.TrimSpace(string(out))
	}
	for name, size := range map[string]int64{"larger": 300 << 20, "with a rest": 64<<20 + 512*5, "equal": 32 << 20} {
		t.Run(name, func(t *testing.T) {
			file, mount := filepath.Join(t.TempDir(), "disk"), t.TempDir()
			require.NoError(t, os.WriteFile(file, nil, 0o600))
			require.NoError(t, os.Truncate(file, 32<<20))
			tool("mkfs.ext4", "-q", file)
			require.NoError(t, os.Truncate(file, size))
			loop := tool("losetup", "--find", "--show", file)
			require.NoError(t, unix.Mount(loop, mount, "ext4", unix.MS_NOATIME, "discard"))
			require.NoError(t, os.WriteFile(filepath.Join(mount, "kept"), []byte("kept"), 0o600))
			var before, after unix.Statfs_t
			require.NoError(t, unix.Statfs(mount, &before))
			require.NoError(t, growRoot(loop, mount))
			require.NoError(t, growRoot(loop, mount), "again")
			require.NoError(t, unix.Statfs(mount, &after))
			added := int64(after.Blocks-before.Blocks) * after.Bsize
			assert.InDelta(t, size-32<<20, added, float64(size)/10, "bytes that were added")
			if size > 200<<20 {
				require.NoError(t, os.WriteFile(filepath.Join(mount, "big"), make([]byte, 200<<20), 0o600), "more than was there before")
			}
			kept, err := os.ReadFile(filepath.Join(mount, "kept"))
			require.NoError(t, err)
			assert.Equal(t, "kept", string(kept))
			require.NoError(t, unix.Unmount(mount, 0))
			tool("e2fsck", "-f", "-n", loop)
			tool("losetup", "--detach", loop)
		})
	}
}

func TestWhatIsNoExt4IsNotGrown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	for _, size := range []int{4096, 1 << 20} {
		require.NoError(t, os.WriteFile(path, make([]byte, size), 0o600))
		assert.NoError(t, growRoot(path, "/nowhere"))
	}
	require.NoError(t, os.WriteFile(path, make([]byte, 100), 0o600))
	assert.ErrorContains(t, growRoot(path, "/nowhere"), "superblock")
	assert.Error(t, growRoot(path+"-gone", "/nowhere"))
}
