package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

// xfs mounts a file system that can share blocks. It has 320 MiB, a little over the least that mkfs.xfs makes.
func xfs(t testing.TB) string {
	t.Helper()
	need.Root(t)
	need.Program(t, "mkfs.xfs")
	need.DeviceMapper(t) // a machine of its own
	file, mount := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 320*mib))
	run(t, "mkfs.xfs", "-q", "-m", "reflink=1", file)
	loop := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", loop) })
	require.NoError(t, unix.Mount(loop, mount, "xfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mount, 0)) })
	return mount
}

func free(t testing.TB, path string) int64 {
	t.Helper()
	unix.Sync()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &st))
	return int64(st.Bfree) * st.Bsize
}

func TestS04_CopiesShareBlocksWhereTheFileSystemCan(t *testing.T) {
	r := newRig(t, ModeCopy, filepath.Join(xfs(t), "agent"))
	assert.Contains(t, r.log.String(), "reflink")
	r.template("base", 32*mib)
	r.reborn()
	require.NoError(t, os.WriteFile(r.templateDisk("base"), noise(1, 32*mib), 0o600))
	before := free(t, r.dir)
	dir, content := r.create("a", 0)
	clone := r.sandbox("b")
	r.clone(dir, clone)
	assert.Less(t, before-free(t, r.dir), int64(8*mib), "two copies of 32 MiB")
	r.write(clone, append([]byte(nil), content...), 0, noise(2, mib))
	assertSame(t, content, r.read(dir), "the source")
	r.remove(dir, clone)
	r.shut()
}
