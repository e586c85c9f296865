package devicemapper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestS01_WhatIsWrittenSurvivesRemoveAndRestore(t *testing.T) {
	for name, grow := range map[string]int64{"same size": 0, "larger": 5 * mib} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			origin := r.origin("origin", 4*mib)
			want := append(read(t, origin), make([]byte, grow)...)
			d := r.disk("a", origin, 4*mib+grow)
			path := r.create(d)
			assert.Equal(t, "/dev/mapper/wrenn-a", path)
			assertEqualBytes(t, want, read(t, path), "a fresh disk")
			data := noise(2, 300_000)
			for _, at := range []int{0, 1_000_001, len(want) - len(data)} {
				write(t, path, int64(at), data)
				copy(want[at:], data)
			}
			for range 3 {
				r.remove("a")
				assert.NoFileExists(t, path)
				path, err := r.Restore(t.Context(), d)
				require.NoError(t, err)
				assertEqualBytes(t, want, read(t, path), "after a restore")
			}
			flat := filepath.Join(r.dir, "flat")
			require.NoError(t, r.Flush(t.Context(), r.disk("a", "", 0)))
			require.NoError(t, Flatten(t.Context(), d, flat))
			assertEqualBytes(t, want, read(t, flat), "flat")
			r.remove("a")
			r.remove("a")
		})
	}
}

func TestS01_ManySandboxesNeverChangeTheirOrigin(t *testing.T) {
	r := newRig(t)
	origin := r.origin("origin", 2*mib)
	before := sumOf(t, origin)
	const n = 100
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			d := r.disk(fmt.Sprint("many", i), origin, int64(2+i%2)*mib)
			path, err := r.Create(t.Context(), d)
			if assert.NoError(t, err) {
				write(t, path, int64(i)*4096, noise(byte(i), 8192))
			}
		})
	}
	wg.Wait()
	assert.Equal(t, n, r.Origins().Users(origin), "users of the one loop device")
	for i := range n {
		got := read(t, fmt.Sprint("/dev/mapper/wrenn-many", i))
		assertEqualBytes(t, noise(byte(i), 8192), got[i*4096:i*4096+8192], "a sandbox's own")
	}
	for i := range n {
		wg.Go(func() { assert.NoError(t, r.Remove(t.Context(), r.disk(fmt.Sprint("many", i), "", 0))) })
	}
	wg.Wait()
	assert.Zero(t, r.Origins().Users(origin))
	assert.Equal(t, before, sumOf(t, origin), "the origin has changed")
}

// TestS01_CowSizeIsExact fills whole disks: with the size that is computed all fits, with a chunk less the kernel
// gives the snapshot up.
func TestS01_CowSizeIsExact(t *testing.T) {
	for _, size := range []int64{mib, 2 * mib, mib + 4096, 3*mib - 4096} {
		for missing, whole := range map[int64]bool{0: true, 1: false} {
			r := newRig(t)
			d := r.disk("full", r.origin("origin", size), size)
			require.NoError(t, os.WriteFile(d.Cow, nil, 0o600))
			require.NoError(t, os.Truncate(d.Cow, CowSize(size)-missing*chunkBytes))
			path := short(t, r, d)
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			data := noise(3, int(size))
			_, err = f.WriteAt(data, 0)
			syncErr := f.Sync()
			require.NoError(t, f.Close())
			s, statusErr := r.Status("full")
			require.NoError(t, statusErr)
			assert.Equal(t, whole, err == nil && syncErr == nil && !s.Invalid, "%d bytes, %d chunks missing: %v %v %+v", size, missing, err, syncErr, s)
			if whole {
				assert.Equal(t, s.Used+chunkBytes, max(s.Total, s.Used+chunkBytes), "%+v", s)
				r.remove("full")
				path, err := r.Restore(t.Context(), d)
				require.NoError(t, err)
				assertEqualBytes(t, data, read(t, path), "a full disk")
			}
			r.remove("full")
			require.NoError(t, r.Close())
			r.Manager = nil
		}
	}
}

// short makes the disk over a CoW file of whatever size.
func short(t *testing.T, r *rig, d Disk) string {
	t.Helper()
	f, err := os.OpenFile(d.Cow, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	origin, err := r.origins.Acquire(t.Context(), d.Origin)
	require.NoError(t, err)
	l, err := r.loops.attach(t.Context(), f, false)
	require.NoError(t, err)
	defer l.Close()
	name, err := Name(d.ID)
	require.NoError(t, err)
	dev, err := r.device(name, mark(d.Cow), false, snapshotTable(uint64(d.Size/sector), origin.Number, l.number))
	require.NoError(t, err)
	require.NoError(t, putNode(name, dev))
	require.NoError(t, origin.Release())
	return filepath.Join(nodeDir, name)
}

func TestF03_AFullCowIsNamed(t *testing.T) {
	r := newRig(t)
	small := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"))
	defer func() { assert.NoError(t, unix.Unmount(small, 0)) }()
	d := r.disk("full", r.origin("origin", 4*mib), 4*mib)
	d.Cow = filepath.Join(small, "cow")
	path := r.create(d)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.Write(noise(1, 3*mib))
	require.ErrorIs(t, joined(err, f.Sync()), unix.EIO, "what the guest sees")
	require.NoError(t, f.Close())
	s, err := r.Status("full")
	require.NoError(t, err)
	assert.True(t, s.Invalid)
	require.ErrorIs(t, r.Flush(t.Context(), d), ErrInvalid)
	_, err = r.Restore(t.Context(), d)
	require.ErrorIs(t, err, ErrInvalid, "with its device")
	require.NoError(t, r.Remove(t.Context(), d))
	_, err = r.Restore(t.Context(), d)
	require.ErrorIs(t, err, ErrInvalid, "made anew")
	require.ErrorIs(t, Flatten(t.Context(), d, filepath.Join(r.dir, "flat")), ErrInvalid)
	_, err = r.Status("full")
	require.ErrorIs(t, err, ErrNotAttached)
}

func joined(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestS01_ABusyDeviceIsWaitedForWithABound(t *testing.T) {
	r := newRig(t)
	d := r.disk("busy", r.origin("origin", mib), mib)
	path := r.create(d)
	f, err := os.Open(path)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = r.Remove(ctx, r.disk("busy", "", 0))
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	start := time.Now()
	require.ErrorIs(t, r.Remove(t.Context(), r.disk("busy", "", 0)), unix.EBUSY)
	assert.GreaterOrEqual(t, time.Since(start), busyLimit)
	time.AfterFunc(300*time.Millisecond, func() { _ = f.Close() })
	r.remove("busy")
}

func TestS01_RefusalsLeaveNothing(t *testing.T) {
	r := newRig(t)
	origin := r.origin("origin", 2*mib)
	good := r.disk("x", origin, 2*mib)
	for name, c := range map[string]struct {
		change func(d *Disk)
		want   string
	}{
		"missing origin":   {func(d *Disk) { d.Origin += "-gone" }, "no such file"},
		"directory":        {func(d *Disk) { d.Origin = r.dir }, "no disk"},
		"origin too large": {func(d *Disk) { d.Size = mib }, "more than the disk's"},
		"no sectors":       {func(d *Disk) { d.Size = 2*mib + 1 }, "a disk of"},
		"bad id":           {func(d *Disk) { d.ID = "../x" }, "invalid"},
	} {
		d := good
		d.Cow = filepath.Join(r.dir, name)
		c.change(&d)
		_, err := r.Create(t.Context(), d)
		require.ErrorContains(t, err, c.want, name)
	}
	_, err := r.Restore(t.Context(), good)
	require.ErrorIs(t, err, os.ErrNotExist, "no CoW")
	require.NoError(t, os.WriteFile(good.Cow, make([]byte, 4096), 0o600))
	_, err = r.Restore(t.Context(), good)
	require.ErrorIs(t, err, ErrCorrupt, "torn")
	require.NoError(t, os.WriteFile(good.Cow, noise(9, int(CowSize(2*mib))), 0o600))
	_, err = r.Restore(t.Context(), good)
	require.ErrorIs(t, err, ErrCorrupt, "foreign")
	require.ErrorIs(t, Flatten(t.Context(), good, filepath.Join(r.dir, "flat")), ErrCorrupt)
	assert.NoFileExists(t, filepath.Join(r.dir, "flat"))
	require.NoError(t, os.Remove(good.Cow))
	require.NoError(t, os.Symlink(origin, good.Cow))
	_, err = r.Restore(t.Context(), good)
	require.ErrorIs(t, err, unix.ELOOP, "a link")
}

func TestN03_AForeignDeviceOfOurNameIsLeftAlone(t *testing.T) {
	r := newRig(t)
	dmsetup := func(args ...string) {
		out, err := exec.Command("dmsetup", args...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	dmsetup("create", "wrenn-theirs", "--table", "0 8 zero")
	defer dmsetup("remove", "wrenn-theirs")
	d := r.disk("theirs", r.origin("origin", mib), mib)
	_, err := r.Create(t.Context(), d)
	require.ErrorIs(t, err, ErrForeign)
	require.ErrorIs(t, r.Remove(t.Context(), r.disk("theirs", "", 0)), ErrForeign)
	require.ErrorIs(t, r.Flush(t.Context(), r.disk("theirs", "", 0)), ErrForeign)
	removed, err := r.Reclaim(t.Context(), func(string) bool { return false })
	require.NoError(t, err)
	assert.Empty(t, removed)
	dmsetup("info", "wrenn-theirs")
}

// TestADiskOfTheSameNameElsewhereIsLeftAlone: a snapshot may be called like a sandbox.
func TestADiskOfTheSameNameElsewhereIsLeftAlone(t *testing.T) {
	r := newRig(t)
	d := r.disk("same", r.origin("origin", mib), 2*mib)
	r.create(d)
	elsewhere := d
	elsewhere.Cow = filepath.Join(t.TempDir(), "same.cow")
	_, err := r.Create(t.Context(), elsewhere)
	require.ErrorIs(t, err, ErrForeign)
	require.ErrorIs(t, r.Remove(t.Context(), elsewhere), ErrForeign)
	require.ErrorIs(t, r.Flush(t.Context(), elsewhere), ErrForeign)
	assert.False(t, r.Attached(elsewhere))
	assert.True(t, r.Attached(d))

	// The file is another by now, which the device does not keep what is written in.
	require.NoError(t, os.Remove(d.Cow))
	assert.NoError(t, os.WriteFile(d.Cow, nil, 0o600))
	assert.NoError(t, os.Truncate(d.Cow, CowSize(d.Size)))
	assert.False(t, r.Attached(d))
	write(t, "/dev/mapper/wrenn-same", 0, noise(1, 4096))
	path, err := r.Restore(t.Context(), d)
	require.NoError(t, err)
	assertEqualBytes(t, read(t, d.Origin)[:4096], read(t, path)[:4096], "the new CoW is empty")
	r.remove("same")
}

func TestProbeSaysThatItWorks(t *testing.T) {
	r := newRig(t)
	require.NoError(t, r.Probe(t.Context()))
	left, err := os.ReadDir(r.dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestS01_DiscardedChunksBecomeHolesAgain(t *testing.T) {
	r := newRig(t)
	d := r.disk("trim", r.origin("origin", 4*mib), 4*mib)
	path := r.create(d)
	write(t, path, 0, noise(5, 4*mib))
	require.NoError(t, r.Flush(t.Context(), r.disk("trim", "", 0)))
	full := allocated(t, d.Cow)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, pointerTo([2]uint64{mib, 2 * mib}))
	require.Zero(t, errno)
	require.NoError(t, f.Close())
	require.NoError(t, r.Flush(t.Context(), r.disk("trim", "", 0)))
	assert.LessOrEqual(t, allocated(t, d.Cow), full-mib)
	r.remove("trim")
}

func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Blocks * 512
}
