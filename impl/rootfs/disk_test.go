package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

func TestS01_ADiskKeepsWhatIsWritten(t *testing.T) {
	modes(t, func(t *testing.T, r *rig) {
		template, err := os.ReadFile(r.templateDisk("base"))
		require.NoError(t, err)
		dir, content := r.create("a", 7)
		assertSame(t, append(template, make([]byte, 3*mib)...), content, "a fresh disk")
		record, err := Info(dir)
		require.NoError(t, err)
		assert.Equal(t, r.Mode(), record.Mode)
		assert.Equal(t, 7, record.SizeMiB)
		assert.Equal(t, int64(4*mib), record.TemplateBytes)
		r.write(dir, content, 100, noise(1, 10_000))
		r.write(dir, content, 4*mib-5000, noise(2, 10_000)) // across the template's end
		r.write(dir, content, 7*mib-1, []byte{42})
		require.NoError(t, r.Create(t.Context(), "base", dir, 7), "repeated after a crash")
		assertSame(t, content, r.read(dir), "after a second create")
		require.Error(t, r.Create(t.Context(), "base", dir, 8), "another disk in its place")
		r.detach(dir)
		if r.Mode() == ModeSnapshot {
			assert.NoFileExists(t, filepath.Join(dir, DiskName))
		}
		r.reborn()
		r.attach(dir)
		assertSame(t, content, r.read(dir), "in the next life")
		r.reborn() // while it is attached
		r.attach(dir)
		assertSame(t, content, r.read(dir), "adopted")
		after, err := os.ReadFile(r.templateDisk("base"))
		require.NoError(t, err)
		assertSame(t, template, after, "the template")
		r.remove(dir)
		require.NoError(t, os.RemoveAll(dir))
		require.NoError(t, r.Remove(t.Context(), dir), "without its directory")
	})
}

// TestS09_ClonesAreIndependent: nothing is synced before, so what the kernel holds back for the device has to
// be brought into the copy.
func TestS09_ClonesAreIndependent(t *testing.T) {
	modes(t, func(t *testing.T, r *rig) {
		dir, content := r.create("a", 5)
		r.write(dir, content, mib, noise(1, mib))
		snapshot := r.sandbox("snapshot")
		r.clone(dir, snapshot) // of a sandbox that runs on
		frozen := append([]byte(nil), content...)
		r.write(dir, content, 0, noise(2, 2*mib))
		assert.NoFileExists(t, filepath.Join(r.sandbox("x"), DiskName))
		for _, id := range []string{"b", "c"} {
			clone := r.sandbox(id)
			r.clone(snapshot, clone)
			r.attach(clone)
			mine := append([]byte(nil), frozen...)
			assertSame(t, mine, r.read(clone), "clone "+id)
			r.write(clone, mine, 2*mib, noise(id[0], mib))
			assertSame(t, mine, r.read(clone), "clone "+id)
		}
		assertSame(t, content, r.read(dir), "the source")
		back := r.sandbox("d")
		r.clone(snapshot, back)
		r.attach(back)
		assertSame(t, frozen, r.read(back), "the snapshot has changed")
		r.remove(dir, r.sandbox("b"), r.sandbox("c"), back, snapshot)
	})
}

func TestS08_ALinkedDiskIsTheSnapshots(t *testing.T) {
	modes(t, func(t *testing.T, r *rig) {
		dir, content := r.create("a", 0)
		r.write(dir, content, mib, noise(1, mib))
		snapshot := r.sandbox("snapshot.new")
		r.link(dir, snapshot)
		entries, err := os.ReadDir(snapshot)
		require.NoError(t, err)
		assert.Len(t, entries, 2, "data and record")
		usage, err := Usage(snapshot)
		require.NoError(t, err)
		assert.GreaterOrEqual(t, usage, int64(mib))
		r.attach(dir) // an agent's restart before the machine is gone
		r.detach(dir)
		if r.Mode() == ModeSnapshot {
			require.ErrorIs(t, r.Attach(t.Context(), dir), ErrShared, "it would change the snapshot")
		}
		r.remove(dir)
		resumed := r.sandbox("b")
		r.clone(snapshot, resumed)
		r.attach(resumed)
		assertSame(t, content, r.read(resumed), "from the snapshot")
		r.remove(resumed, snapshot)
	})
}

func TestS01_ADiskOverAnotherTemplateIsRefused(t *testing.T) {
	modes(t, func(t *testing.T, r *rig) {
		dir, content := r.create("a", 0)
		r.write(dir, content, 0, noise(1, 5000))
		r.template("base", 4*mib, 2*mib)
		r.reborn()
		r.attach(dir) // what runs goes on
		assertSame(t, content, r.read(dir), "under a machine")
		r.detach(dir)
		err := r.Attach(t.Context(), dir)
		if r.Mode() == ModeCopy {
			require.NoError(t, err, "a copy holds all itself")
		} else {
			require.ErrorIs(t, err, ErrTemplateChanged)
			require.ErrorContains(t, err, "base")
		}
		require.NoError(t, os.RemoveAll(filepath.Join(r.image(), "templates", "base")))
		err = r.Attach(t.Context(), dir)
		if r.Mode() == ModeCopy {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, ErrNoTemplate)
		}
		clone := r.sandbox("clone") // which needs no template
		r.clone(dir, clone)
		r.template("base", 4*mib, 0, mib) // the same content again, in another file
		r.attach(clone)
		assertSame(t, content, r.read(clone), "over the same content again")
		r.remove(dir, clone)
	})
}

func TestSizesAreBounded(t *testing.T) {
	modes(t, func(t *testing.T, r *rig) {
		dir := r.sandbox("a")
		for _, size := range []int{-1, 3, maxSizeMiB + 1} {
			require.ErrorIs(t, r.Create(t.Context(), "base", dir, size), ErrSize, "%d", size)
		}
		require.NoError(t, r.Create(t.Context(), "base", dir, 4))
		r.remove(dir)
		r.template("odd", 4*mib+4096, 0)
		require.NoError(t, r.Create(t.Context(), "odd", dir, 0), "rounded up to MiB")
		assert.Len(t, r.read(dir), 5*mib)
		r.remove(dir)
		require.ErrorContains(t, r.Create(t.Context(), "base", r.sandbox("not:a:name"), 0), "invalid name")
	})
}

// TestS08_RecordsAreDistrusted: a snapshot may come from elsewhere, and a crash may leave anything.
func TestS08_RecordsAreDistrusted(t *testing.T) {
	r := newRig(t, ModeCopy, t.TempDir())
	dir, _ := r.create("a", 0)
	path := filepath.Join(dir, RecordName)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, c := range [][2]string{
		{`"version": 1`, `"version": 2`}, {`"mode": "copy"`, `"mode": "tape"`}, {`"template": "base"`, `"template": "../../etc"`},
		{`"sizeMiB": 4`, `"sizeMiB": 3`}, {`"sizeMiB": 4`, `"sizeMiB": 99999999999`}, {`"templateBytes": 4194304`, `"templateBytes": -1`},
		{`"templateHash": "`, `"x": "`}, {"{", ""}, {"{", strings.Repeat(" ", maxRecord) + "{"},
	} {
		bad := strings.Replace(string(good), c[0], c[1], 1)
		require.NotEqual(t, string(good), bad, c[0])
		require.NoError(t, os.WriteFile(path, []byte(bad), 0o600))
		for what, err := range map[string]error{
			"attach": r.Attach(t.Context(), dir), "clone": r.Clone(t.Context(), dir, r.sandbox("b")), "link": r.Link(t.Context(), dir, r.sandbox("s")),
		} {
			require.ErrorContains(t, err, path, "%s %s", what, c[1])
		}
	}
	require.NoError(t, os.Remove(path))
	require.ErrorIs(t, r.Attach(t.Context(), dir), ErrNoRecord)
	require.NoError(t, os.WriteFile(path, good, 0o600))
	require.NoError(t, os.Truncate(filepath.Join(dir, DiskName), 4*mib-1))
	require.ErrorContains(t, r.Attach(t.Context(), dir), "torn")
	require.ErrorContains(t, r.Clone(t.Context(), dir, r.sandbox("b")), "torn")
	r.remove(dir)
}

func TestF01_WhatAKilledActLeftIsMadeAgain(t *testing.T) {
	modes(t, func(t *testing.T, r *rig) {
		dir, content := r.create("a", 0)
		clone := r.sandbox("b")
		for _, name := range []string{DiskName + ".part", CowName + ".part", RecordName + ".part"} {
			require.NoError(t, os.WriteFile(filepath.Join(clone, name), []byte("torn"), 0o600))
		}
		r.clone(dir, clone)
		r.attach(clone)
		assertSame(t, content, r.read(clone), "clone")
		r.remove(clone)
		for _, name := range []string{DiskName + ".part", RecordName + ".part", RecordName} {
			require.NoError(t, os.WriteFile(filepath.Join(clone, name), []byte("torn"), 0o600))
		}
		require.NoError(t, r.Create(t.Context(), "base", clone, 0))
		assertSame(t, content, r.read(clone), "create")
		r.remove(dir, clone)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, r.Create(ctx, "base", clone, 0), context.Canceled)
		r.remove(clone)
	})
}

func TestN06_DevicesOfTheDeadAreReclaimed(t *testing.T) {
	r := newRig(t, ModeSnapshot, t.TempDir())
	dead, _ := r.create("dead", 5)
	living, content := r.create("living", 5)
	r.shut()
	r.open(ModeCopy) // also by an agent that makes copies now
	young := r.sandbox("young")
	require.NoError(t, r.Create(t.Context(), "base", young, 0))
	r.act("reclaim", func(ctx context.Context) error { return r.Reclaim(ctx, []string{living}) })
	assert.NoFileExists(t, "/dev/mapper/wrenn-dead")
	r.attach(living)
	assertSame(t, content, r.read(living), "living")
	r.remove(dead, living, young)
}

// TestASnapshotMayBeCalledLikeASandbox: names of snapshots are users' choice.
func TestASnapshotMayBeCalledLikeASandbox(t *testing.T) {
	modes(t, func(t *testing.T, r *rig) {
		dir, content := r.create("same", 5)
		snapshot := sandboxDir(t, r.sandbox("snapshots"), "same")
		r.clone(dir, snapshot)
		r.write(dir, content, 0, noise(1, mib))
		require.NoError(t, r.Sync(t.Context(), snapshot))
		r.remove(snapshot)
		assertSame(t, content, r.read(dir), "the sandbox's disk")
		r.attach(dir)
		r.remove(dir)
	})
}

func TestF03_AFullHostMakesADiskInvalidAndSaysSo(t *testing.T) {
	r := newRig(t, ModeSnapshot, t.TempDir())
	small := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"))
	defer func() { assert.NoError(t, unix.Unmount(small, 0)) }()
	dir := sandboxDir(t, small, "a")
	require.NoError(t, r.Create(t.Context(), "base", dir, 0))
	require.NoError(t, r.Health(dir))
	f, err := os.OpenFile(filepath.Join(dir, DiskName), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.Write(noise(1, 3*mib))
	require.ErrorIs(t, errors.Join(err, f.Sync()), unix.EIO)
	require.NoError(t, f.Close())
	require.ErrorIs(t, r.Health(dir), ErrInvalid)
	for what, err := range map[string]error{
		"link": r.Link(t.Context(), dir, r.sandbox("s")), "clone": r.Clone(t.Context(), dir, r.sandbox("b")), "attach": r.Attach(t.Context(), dir),
	} {
		require.ErrorIs(t, err, ErrInvalid, what)
	}
	require.NoError(t, r.Detach(t.Context(), dir))
	require.ErrorIs(t, r.Attach(t.Context(), dir), ErrInvalid)
	require.NoError(t, r.Remove(t.Context(), dir))
}

func TestNoSpaceIsNamed(t *testing.T) {
	need.Root(t)
	r := newRig(t, ModeCopy, t.TempDir())
	small := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=100k"))
	defer func() { assert.NoError(t, unix.Unmount(small, 0)) }()
	full := sandboxDir(t, small, "a")
	require.ErrorIs(t, r.Create(t.Context(), "base", full, 0), ErrNoSpace)
	r.remove(full)
	dir, _ := r.create("b", 0)
	require.ErrorIs(t, r.Clone(t.Context(), dir, full), ErrNoSpace)
	r.remove(full, dir)
}

func TestTheModeIsFoundOutAndSaid(t *testing.T) {
	for mode, says := range map[Mode]string{ModeCopy: "copies", ModeSnapshot: "dm-snapshots"} {
		t.Run(string(mode), func(t *testing.T) {
			r := newRig(t, mode, t.TempDir())
			assert.Equal(t, 1, strings.Count(r.log.String(), "\n"), r.log)
			assert.Contains(t, r.log.String(), "disks are ")
			assert.Contains(t, r.log.String(), says)
			if mode == ModeSnapshot {
				r.shut()
				r.open("")
				assert.Equal(t, ModeSnapshot, r.Mode(), "what is found here")
			}
			left, err := filepath.Glob(filepath.Join(r.dir, "disks", "probe-*"))
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
	r := newRig(t, ModeCopy, t.TempDir())
	cfg := r.cfg
	cfg.Mode = "tape"
	_, err := NewStore(cfg)
	require.ErrorContains(t, err, "unknown mode")
}

func TestS04_SizesAreAllocatedBlocks(t *testing.T) {
	dir := t.TempDir()
	sub := sandboxDir(t, dir, "sub")
	empty, err := DirSize(dir)
	require.NoError(t, err)
	sparseFile(t, filepath.Join(dir, "a"), 0, 8*mib) // 128 KiB of data in 16 MiB
	one, err := DirSize(dir)
	require.NoError(t, err)
	assert.InDelta(t, 128<<10, one-empty, 16<<10, "apparent size was counted")
	for i := range 3 {
		require.NoError(t, os.Link(filepath.Join(dir, "a"), filepath.Join(sub, fmt.Sprint(i))))
	}
	linked, err := DirSize(dir)
	require.NoError(t, err)
	assert.InDelta(t, one, linked, 8<<10, "hard links were counted")
	require.NoError(t, os.Symlink("a", filepath.Join(dir, "link")))
	_, err = DirSize(filepath.Join(dir, "gone"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestHashesAreOfContent(t *testing.T) {
	r := newRig(t, ModeCopy, t.TempDir())
	path := r.templateDisk("base")
	first, err := r.hashes.of(t.Context(), path)
	require.NoError(t, err)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600)) // zeros instead of holes
	again, err := r.hashes.of(t.Context(), path)
	require.NoError(t, err)
	assert.Equal(t, first.Hash, again.Hash)
	assert.NotEqual(t, first.Identity, again.Identity)
	seen := map[string]bool{first.Hash: true}
	for name, change := range map[string]func([]byte) []byte{
		"a bit": func(b []byte) []byte { b[3*mib] = 1; return b }, "size": func(b []byte) []byte { return b[:4*mib-4096] },
		"moved by a block": func(b []byte) []byte { return append(make([]byte, 4096), b[:4*mib-4096]...) },
	} {
		require.NoError(t, os.WriteFile(path, change(append([]byte(nil), data...)), 0o600))
		now, err := r.hashes.of(t.Context(), path)
		require.NoError(t, err)
		assert.False(t, seen[now.Hash], name)
		seen[now.Hash] = true
	}
	r.reborn()
	require.NotEmpty(t, r.hashes.known, "a next life has to read all again")
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "disks", "hashes.json"), []byte("{torn"), 0o600))
	r.reborn()
	_, err = r.hashes.of(t.Context(), path)
	require.NoError(t, err)
}
