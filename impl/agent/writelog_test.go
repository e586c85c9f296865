package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/internal/sparsefile"
	"wrenn/impl/need"
)

// writeLog is a host's disk with a file system on it, every write to which is kept in order: what the disk held
// at any moment at which its power could have failed can be had again. It is the kernel's dm-log-writes, which
// puts a write that was not flushed behind those that were, as a disk with a cache may.
type writeLog struct {
	t           *testing.T
	fs          string
	size        int64
	dir         string
	base, log   string // files: the disk before, and what was written since
	mount       string
	entries     []written
	diskL, logL string // loop devices
}

// written is one entry of the log: a write, a flush, or a mark of the test's.
type written struct {
	offset       int64
	data         []byte
	flush, force bool // force is a write that is on the disk before later ones
	mark         string
}

const recorded = "test-recorded"

// recordWrites makes the file system with what fill puts there, and records from then on until replay.
func recordWrites(t *testing.T, fs string, fill func(mount string)) *writeLog {
	t.Helper()
	need.DeviceMapper(t)
	need.Program(t, "dmsetup", "losetup", "fallocate", "mkfs."+fs)
	// XFS makes no file system below 300 MiB.
	w := &writeLog{t: t, fs: fs, size: 320 << 20, dir: t.TempDir(), mount: t.TempDir()}
	w.base, w.log = w.file("base", w.size), w.file("log", 1<<30)
	args := map[string][]string{
		"ext4": {"-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=8", w.base}, "xfs": {"-q", w.base},
	}
	system(t, "mkfs."+fs, args[fs]...)
	loop := system(t, "losetup", "--find", "--show", w.base)
	require.NoError(t, unix.Mount(loop, w.mount, fs, 0, ""))
	fill(w.mount)
	require.NoError(t, unix.Unmount(w.mount, 0))
	system(t, "losetup", "--detach", loop)
	system(t, "fallocate", "--dig-holes", w.base) // the zeros of a log of 64 MiB would be copied for each moment

	disk := filepath.Join(w.dir, "disk")
	require.NoError(t, sparsefile.Copy(t.Context(), w.base, disk))
	w.diskL, w.logL = system(t, "losetup", "--find", "--show", disk), system(t, "losetup", "--find", "--show", w.log)
	system(t, "dmsetup", "create", recorded, "--table", fmt.Sprintf("0 %d log-writes %s %s", w.size/512, w.diskL, w.logL))
	t.Cleanup(w.remove)
	system(t, "dmsetup", "mknodes")
	require.NoError(t, unix.Mount("/dev/mapper/"+recorded, w.mount, fs, 0, ""))
	return w
}

func (w *writeLog) file(name string, size int64) string {
	path := filepath.Join(w.dir, name)
	require.NoError(w.t, os.WriteFile(path, nil, 0o600))
	require.NoError(w.t, os.Truncate(path, size))
	return path
}

// mark notes a moment.
func (w *writeLog) mark(name string) {
	w.t.Helper()
	system(w.t, "dmsetup", "message", recorded, "0", "mark", name)
}

// stop ends the recording and reads the log.
func (w *writeLog) stop() {
	w.t.Helper()
	w.remove()
	f, err := os.Open(w.log)
	require.NoError(w.t, err)
	defer f.Close()
	w.entries = readLog(w.t, f)
	// What comes after the last mark is the unmounting.
	for n := len(w.entries); n > 0 && (w.entries[n-1].mark == "" || w.entries[n-1].mark == "dm-log-writes-end"); n-- {
		w.entries = w.entries[:n-1]
	}
}

// remove ends the recording.
func (w *writeLog) remove() {
	if w.diskL == "" {
		return
	}
	require.NoError(w.t, unix.Unmount(w.mount, 0))
	system(w.t, "dmsetup", "remove", "--retry", recorded)
	system(w.t, "losetup", "--detach", w.diskL, w.logL)
	w.diskL = ""
}

// readLog reads the format of drivers/md/dm-log-writes.c: a sector that says how many entries there are, then
// each entry in a sector of its own with its data behind it.
func readLog(t *testing.T, r io.ReaderAt) []written {
	t.Helper()
	const (
		magic                    = 0x6a736677736872
		flush, fua, discard, tag = 1, 2, 4, 8
	)
	le := binary.LittleEndian
	sector := make([]byte, 512)
	read := func(b []byte, at int64) { _, err := r.ReadAt(b, at); require.NoError(t, err) }
	read(sector, 0)
	require.EqualValues(t, magic, le.Uint64(sector))
	require.EqualValues(t, len(sector), le.Uint32(sector[24:]), "the log's sector")
	entries := make([]written, le.Uint64(sector[16:]))
	at := int64(len(sector))
	for i := range entries {
		read(sector, at)
		at += int64(len(sector))
		flags, bytesAt, size := le.Uint64(sector[16:]), int64(le.Uint64(sector))*512, int64(le.Uint64(sector[8:]))*512
		e := written{offset: bytesAt, flush: flags&flush != 0, force: flags&fua != 0}
		switch {
		case flags&tag != 0:
			e.mark = string(sector[32 : 32+le.Uint64(sector[24:])])
			e.mark = strings.TrimRight(e.mark, "\x00")
		case flags&discard != 0:
			e.data = make([]byte, size) // reads as zeros, or as what was there; the log does not say
		default:
			e.data = make([]byte, size)
			read(e.data, at)
			at += size
		}
		entries[i] = e
	}
	return entries
}

// replay shows to look what the disk may hold after the power has failed, moment by moment, together with the
// marks until then: after each write that was forced, at each mark, and before each flush with a random part of
// what had not been flushed. It returns how many moments there were.
func (w *writeLog) replay(random *rand.Rand, look func(mount string, marks []string)) (moments int) {
	w.t.Helper()
	disk := filepath.Join(w.dir, "replayed")
	require.NoError(w.t, sparsefile.Copy(w.t.Context(), w.base, disk))
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	require.NoError(w.t, err)
	defer f.Close()
	var marks []string
	see := func(torn []written) {
		moments++
		if w.t.Failed() {
			return // one is enough to read
		}
		w.show(disk, torn, func(mount string) { look(mount, marks) })
	}
	for from := 0; from < len(w.entries); {
		to, loose := from, []written(nil)
		for to < len(w.entries) && (to == from || !w.entries[to-1].flush) {
			e := w.entries[to]
			to++
			switch {
			case e.mark != "":
				marks = append(marks, e.mark)
				see(nil)
			case e.force && !e.flush:
				e.apply(w.t, f)
				see(nil)
			case !e.flush:
				loose = append(loose, e)
			}
		}
		if len(loose) > 1 {
			random.Shuffle(len(loose), func(i, j int) { loose[i], loose[j] = loose[j], loose[i] })
			see(loose[:random.IntN(len(loose))])
		}
		for _, e := range w.entries[from:to] {
			if !e.force || e.flush {
				e.apply(w.t, f)
			}
		}
		if len(w.entries[to-1].data) > 0 {
			see(nil) // otherwise it was a flush alone, which changes nothing that a forced write does not seal
		}
		from = to
	}
	return moments
}

func (e written) apply(t *testing.T, f *os.File) {
	t.Helper()
	if len(e.data) > 0 {
		_, err := f.WriteAt(e.data, e.offset)
		require.NoError(t, err)
	}
}

// show mounts a copy of the disk with some writes more.
func (w *writeLog) show(disk string, torn []written, look func(mount string)) {
	w.t.Helper()
	path := filepath.Join(w.dir, "seen")
	require.NoError(w.t, sparsefile.Copy(w.t.Context(), disk, path))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(w.t, err)
	for _, e := range torn {
		e.apply(w.t, f)
	}
	require.NoError(w.t, f.Close())
	loop := system(w.t, "losetup", "--find", "--show", path)
	require.NoError(w.t, unix.Mount(loop, w.mount, w.fs, 0, ""))
	look(w.mount)
	require.NoError(w.t, unix.Unmount(w.mount, 0))
	system(w.t, "losetup", "--detach", loop)
	require.NoError(w.t, os.Remove(path))
}

// system runs a program of the system and returns what it prints.
func system(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s %v: %s", name, args, &stderr)
	return strings.TrimSpace(string(out))
}

// TestS08_TheLogOfWritesShowsWhatAPowerFailureLoses: the ground of the test of snapshots can tell a synced file
// from one that is not.
func TestS08_TheLogOfWritesShowsWhatAPowerFailureLoses(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			w := recordWrites(t, fs, func(string) {})
			content := bytes.Repeat([]byte("content "), 1<<15)
			for _, name := range []string{"loose", "synced"} {
				f, err := os.Create(filepath.Join(w.mount, name))
				require.NoError(t, err)
				_, err = f.Write(content)
				require.NoError(t, err)
				if name == "synced" {
					require.NoError(t, f.Sync())
				}
				require.NoError(t, f.Close())
			}
			w.mark("synced")
			w.stop()
			var lost, kept int
			moments := w.replay(rand.New(rand.NewPCG(1, 1)), func(mount string, marks []string) {
				synced, err := os.ReadFile(filepath.Join(mount, "synced"))
				whole := err == nil && bytes.Equal(synced, content)
				if len(marks) == 0 {
					if !whole {
						lost++
					}
					return
				}
				assert.True(t, whole, "what was synced is lost")
				loose, err := os.ReadFile(filepath.Join(mount, "loose"))
				if err != nil || !bytes.Equal(loose, content) {
					kept++
				}
			})
			assert.Positive(t, lost, "before the sync it is there already")
			assert.Positive(t, kept, "what was never synced is there as well")
			t.Logf("%d moments", moments)
		})
	}
}

// TestS08_APowerFailureLeavesTheOldOrTheNewJournal, whose writes are acknowledged one by one. One that is put, and synced
// later, may be torn until then; once it is acknowledged it is there.
func TestS08_APowerFailureLeavesTheOldOrTheNewJournal(t *testing.T) {
	put := func(path string, data []byte, perm os.FileMode) error {
		return errors.Join(atomicfile.Put(path, data, perm), atomicfile.Sync(path))
	}
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs+"/written", func(t *testing.T) { loseJournals(t, fs, atomicfile.Write, false) })
		t.Run(fs+"/put", func(t *testing.T) { loseJournals(t, fs, put, true) })
	}
}

func loseJournals(t *testing.T, fs string, write func(string, []byte, os.FileMode) error, torn bool) {
	t.Helper()
	w := recordWrites(t, fs, func(string) {})
	journal := func(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "journal %d ", n), 2000) }
	const writes = 5
	for n := range writes {
		require.NoError(t, write(filepath.Join(w.mount, "journal"), journal(n), 0o600))
		w.mark(fmt.Sprintf("written-%d", n))
	}
	w.stop()
	moments := w.replay(powerSeed(t), func(mount string, marks []string) {
		found, err := os.ReadFile(filepath.Join(mount, "journal"))
		if os.IsNotExist(err) && len(marks) == 0 {
			return
		}
		require.NoError(t, err, "after %v", marks)
		acknowledged := len(marks) - 1
		for n := range writes {
			if bytes.Equal(found, journal(n)) {
				require.True(t, n == acknowledged || n == acknowledged+1, "after %v: %.20q", marks, found)
				return
			}
		}
		require.True(t, torn && len(marks) < writes, "after %v: %.20q", marks, found)
	})
	t.Logf("%d moments", moments)
}
