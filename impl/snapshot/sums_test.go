package snapshot

import (
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

// diskName is the file whose sums are kept.
const diskName = "root.disk"

// sharing mounts a file system whose files can share blocks.
func sharing(t *testing.T) string {
	t.Helper()
	need.Root(t)
	need.Program(t, "mkfs.xfs", "losetup")
	need.DeviceMapper(t) // a machine of its own, whose loop devices nobody counts
	image, mount := filepath.Join(t.TempDir(), "image"), t.TempDir()
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 320<<20))
	out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command("mount", "-o", "loop", image, mount).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mount, 0)) })
	return mount
}

// described makes a sealed snapshot of the disk at path, which was made of that in one of the former directories.
func described(t *testing.T, path, dir string, former ...string) Manifest {
	t.Helper()
	require.NoError(t, Create(dir))
	require.NoError(t, os.Link(path, filepath.Join(dir, diskName)))
	disk, err := DescribeDisk(t.Context(), dir, nil, former...)
	require.NoError(t, err)
	m, err := Seal(t.Context(), dir, Manifest{ID: NewID()}, disk...)
	require.NoError(t, err)
	return m
}

// clone makes a disk that shares all its blocks with another; its file has the name of a snapshot's.
func clone(t *testing.T, from, to string) *os.File {
	t.Helper()
	source, err := os.Open(from)
	require.NoError(t, err)
	defer source.Close()
	f, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, unix.IoctlFileClone(int(f.Fd()), int(source.Fd())))
	return f
}

// TestS08_WhatADiskSharesIsSummedUpWithoutReading writes to a chain of disks in all ways that change blocks: what is
// taken from the former snapshot must be what a whole reading finds.
func TestS08_WhatADiskSharesIsSummedUpWithoutReading(t *testing.T) {
	const size = 24<<20 + 4096
	root := sharing(t)
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	first := filepath.Join(root, "disk")
	require.NoError(t, os.WriteFile(first, noise(16<<20), 0o600))
	require.NoError(t, os.Truncate(first, size))
	former := filepath.Join(root, "0")
	described(t, first, former, "none")
	shared, pieces := 0, 0
	for round := range 20 {
		disk := filepath.Join(root, string(rune('a'+round)), diskName)
		require.NoError(t, os.Mkdir(filepath.Dir(disk), 0o700))
		f := clone(t, filepath.Join(former, diskName), disk)
		for range random.IntN(6) {
			at, n := random.Int64N(size-300_000), 1+random.IntN(300_000)
			switch random.IntN(5) {
			case 0, 1:
				_, err := f.WriteAt(noise(n), at)
				require.NoError(t, err)
			case 2:
				_, err := f.WriteAt(make([]byte, n), at)
				require.NoError(t, err)
			case 3:
				require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(n)))
			case 4:
				require.NoError(t, unix.Fallocate(int(f.Fd()), 0, at, int64(n)))
			}
		}
		dir := filepath.Join(root, string(rune('A'+round)))
		m := described(t, disk, dir, filepath.Join(root, "none"), former)
		k := openFormer(f, size, []string{former})
		require.NotNil(t, k, "the former snapshot's sums are not used")
		for index := range int64((size + piece - 1) / piece) {
			pieces++
			if k.has(index) {
				shared++
			}
		}
		whole, err := sumPieces(t.Context(), f, size, nil)
		require.NoError(t, err)
		require.Equal(t, crc32.Checksum(whole, castagnoli), *m.Files[0].CRC, "round %d", round)
		former = dir
	}
	t.Logf("%d of %d pieces were not read", shared, pieces)
	assert.Greater(t, shared, pieces/2)
}

// TestS08_OnlyTheSumsOfTheManifestAreUsed: others cost a reading and nothing else.
func TestS08_OnlyTheSumsOfTheManifestAreUsed(t *testing.T) {
	root := sharing(t)
	path := filepath.Join(root, "disk")
	require.NoError(t, os.WriteFile(path, []byte("content of a disk"), 0o600))
	former := filepath.Join(root, "former")
	want := described(t, path, former, "none")
	sums := filepath.Join(former, diskName+sumsSuffix)
	good, err := os.ReadFile(sums)
	require.NoError(t, err)
	f := clone(t, path, filepath.Join(root, diskName))
	size := want.Files[0].Size
	require.NotNil(t, openFormer(f, size, []string{former}))
	for how, bad := range map[string][]byte{"cut": good[:len(good)-1], "short": good[sumBytes:], "changed": append([]byte{1}, good[1:]...), "longer": append(good, good...)} {
		require.NoError(t, os.WriteFile(sums, bad, 0o600))
		assert.Nil(t, openFormer(f, size, []string{former}), how)
	}
	require.NoError(t, os.WriteFile(sums, good, 0o600))
	assert.Nil(t, openFormer(f, size+1, []string{former}), "of another size")
	assert.NotNil(t, openFormer(f, size, []string{former}))
	_, err = Load(t.Context(), former)
	require.NoError(t, err)
}
