package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

// benchTemplate is the data of the template that benchmarks make disks of. A real one has 240 MiB.
const benchTemplate = 64 * mib

// ext4 mounts a file system that cannot share blocks.
func ext4(t testing.TB) string {
	t.Helper()
	need.DeviceMapper(t)
	need.Program(t, "mkfs.ext4", "losetup")
	file, mount := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 512*mib))
	run(t, "mkfs.ext4", "-q", file)
	loop := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", loop) })
	require.NoError(t, unix.Mount(loop, mount, "ext4", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mount, 0)) })
	return mount
}

// BenchmarkDisk makes a disk and removes it, in each way and on each file system: what it takes, and what it
// occupies before anything is written to it.
func BenchmarkDisk(b *testing.B) {
	for _, c := range []struct {
		name  string
		mode  Mode
		mount func(testing.TB) string
	}{
		{"dm-snapshot/ext4", ModeSnapshot, ext4}, {"dm-snapshot/xfs", ModeSnapshot, xfs},
		{"reflink/xfs", ModeCopy, xfs}, {"copy/ext4", ModeCopy, ext4},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b, c.mode, filepath.Join(c.mount(b), "agent"))
			defer r.shut()
			require.NoError(b, os.WriteFile(r.templateDisk("base"), noise(1, benchTemplate), 0o600))
			dir := r.sandbox("bench")
			require.NoError(b, r.Create(b.Context(), "base", dir, 0)) // the template is read once
			require.NoError(b, r.Remove(b.Context(), dir))
			used := free(b, r.dir)
			require.NoError(b, r.Create(b.Context(), "base", dir, 0))
			used -= free(b, r.dir)
			require.NoError(b, r.Remove(b.Context(), dir))
			var create, clone time.Duration
			other := r.sandbox("clone")
			for b.Loop() {
				start := time.Now()
				require.NoError(b, r.Create(b.Context(), "base", dir, 0))
				create += time.Since(start)
				start = time.Now()
				require.NoError(b, r.Clone(b.Context(), dir, other))
				clone += time.Since(start)
				require.NoError(b, r.Remove(b.Context(), dir))
				require.NoError(b, r.Remove(b.Context(), other))
			}
			b.ReportMetric(float64(create.Nanoseconds())/float64(b.N), "create-ns/op")
			b.ReportMetric(float64(clone.Nanoseconds())/float64(b.N), "clone-ns/op")
			b.ReportMetric(float64(used), "disk-B")
		})
	}
}

// BenchmarkReady compares a copy made on demand with one that was ready.
func BenchmarkReady(b *testing.B) {
	for _, ready := range []int{0, 2} {
		b.Run(fmt.Sprintf("ready=%d", ready), func(b *testing.B) {
			s, dir := newStore(b, ready)
			disk := filepath.Join(dir, "image", "templates", "base", templateDisk)
			require.NoError(b, os.WriteFile(disk, noise(1, benchTemplate), 0o600))
			path := sandboxDir(b, dir, "disk")
			for b.Loop() {
				b.StopTimer()
				s.Fill("base")
				require.Eventually(b, func() bool {
					found, err := filepath.Glob(filepath.Join(dir, "disks", "ready", "base@*[0-9]"))
					return err == nil && len(found) == ready
				}, time.Minute, time.Millisecond)
				b.StartTimer()
				require.NoError(b, s.Create(b.Context(), "base", path, 0))
				b.StopTimer()
				require.NoError(b, s.Remove(b.Context(), path))
				b.StartTimer()
			}
		})
	}
}
