package devicemapper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func nobody(string) bool { return false }

// killed is how the child of a test is told what to do and where to die: directory, act, count of commands.
const killed = "WRENN_TEST_KILLED"

// TestKilledChild is the process that dies in the tests below; by itself it does nothing.
func TestKilledChild(t *testing.T) {
	dir, rest, ok := strings.Cut(os.Getenv(killed), ":")
	if !ok {
		return
	}
	act, count, _ := strings.Cut(rest, ":")
	n, err := strconv.Atoi(count)
	require.NoError(t, err)
	m := open(t, dir)
	m.control.after = func() {
		if n--; n == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	d := Disk{ID: "killed", Origin: filepath.Join(dir, "origin"), Size: 2 * mib, Cow: filepath.Join(dir, "killed.cow")}
	switch act {
	case "create":
		_, err = m.Create(t.Context(), d)
	case "remove":
		err = m.Remove(t.Context(), d)
	case "flush":
		err = m.Flush(t.Context(), d)
	}
	require.NoError(t, err)
	require.NoError(t, m.Close())
}

// dies runs the child; false when it came to the act's end alive.
func (r *rig) dies(act string, after int) bool {
	r.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%s:%d", killed, r.dir, act, after))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(r.t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "%s after %d: %v: %s", act, after, err, out)
	return true
}

func TestF01_KilledAfterAnyCommandOfACreate(t *testing.T) {
	r := newRig(t)
	origin := r.origin("origin", mib)
	d := r.disk("killed", origin, 2*mib)
	want := append(read(t, origin), make([]byte, mib)...)
	for n := 1; r.dies("create", n); n++ {
		require.Less(t, n, 50)
		if n%2 == 0 { // the next life tries again at once
			r.reborn()
			assertEqualBytes(t, want, read(t, r.create(d)), fmt.Sprint("killed after ", n))
			r.remove("killed")
			assert.Empty(t, r.leftovers(nobody), "killed after %d", n)
			continue
		}
		r.reborn()
		_, err := r.Reclaim(t.Context(), nobody)
		require.NoError(t, err)
		assert.Empty(t, r.leftovers(nobody), "killed after %d", n)
		assert.Empty(t, allLoops(t), "killed after %d", n)
	}
	r.remove("killed") // made by a child that lived
}

func (r *rig) leftovers(living func(string) bool) []string {
	r.t.Helper()
	ids, err := r.Leftovers(living)
	require.NoError(r.t, err)
	return ids
}

func TestF01_KilledAfterAnyCommandOfARemove(t *testing.T) {
	r := newRig(t)
	d := r.disk("killed", r.origin("origin", mib), 2*mib)
	for n, alive := 1, false; !alive; n++ {
		require.Less(t, n, 50)
		path := r.create(d)
		write(t, path, 4096, []byte("kept"))
		r.reborn()
		alive = !r.dies("remove", n)
		path, err := r.Restore(t.Context(), d)
		require.NoError(t, err, "killed after %d", n)
		assert.Equal(t, "kept", string(read(t, path)[4096:4100]))
		r.remove("killed")
		assert.Empty(t, allLoops(t), "killed after %d", n)
	}
}

// TestF01_KilledAfterAnyCommandOfAFlush: a device may be left suspended, with a guest's writes waiting.
func TestF01_KilledAfterAnyCommandOfAFlush(t *testing.T) {
	r := newRig(t)
	d := r.disk("killed", r.origin("origin", mib), 2*mib)
	path := r.create(d)
	r.reborn()
	for i := 3; r.dies("flush", i/3); i++ { // each death three times, with three ways to go on
		require.Less(t, i, 150)
		switch i % 3 {
		case 0:
			require.NoError(t, r.Flush(t.Context(), r.disk("killed", "", 0)))
		case 1:
			_, err := r.Restore(t.Context(), d)
			require.NoError(t, err)
		default:
			r.remove("killed")
			r.create(d)
		}
		write(t, path, 0, noise(byte(i), 4096))
	}
	r.remove("killed")
}

func TestN06_ReclaimTakesWhatIsNobodysAndNothingElse(t *testing.T) {
	r := newRig(t)
	origin := r.origin("origin", mib)
	other := newRig(t)
	theirs := other.disk("theirs", other.origin("origin", mib), mib)
	other.create(theirs)
	foreign := foreignLoop(t, origin)
	for _, id := range []string{"dead1", "dead2", "living"} {
		r.create(r.disk(id, origin, 2*mib))
	}
	r.reborn()
	require.NoError(t, os.Symlink("../dm-999", "/dev/mapper/wrenn-dangling"))
	kept := r.disk("kept", origin, mib)
	r.create(kept)
	removed, err := r.Reclaim(t.Context(), func(id string) bool { return id == "living" })
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"dead1", "dead2"}, removed)
	assert.NoFileExists(t, "/dev/mapper/wrenn-dangling")
	for _, id := range []string{"living", "kept"} {
		_, err := r.Status(id)
		require.NoError(t, err, id)
	}
	_, err = other.Status("theirs")
	require.NoError(t, err, "another owner's")
	assert.Contains(t, allLoops(t), foreign, "somebody's own loop device over our origin")
	removed, err = r.Reclaim(t.Context(), func(id string) bool { return id == "living" })
	require.NoError(t, err)
	assert.Empty(t, removed, "a second time")
	r.remove("kept")
	r.remove("living")
	other.remove("theirs")
}

// foreignLoop attaches a loop device as a person would, and returns its name.
func foreignLoop(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		out, err := exec.Command("losetup", "--detach", dev).CombinedOutput()
		assert.NoError(t, err, "%s", out)
	})
	return filepath.Base(dev) + "/"
}

func TestS02_LoopsAreSharedCountedAndAdopted(t *testing.T) {
	r := newRig(t)
	origin := r.origin("origin", mib)
	foreign := foreignLoop(t, origin)
	alias := filepath.Join(r.dir, "alias")
	require.NoError(t, os.Link(origin, alias))
	var mu sync.Mutex
	var holds []*Hold
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			h, err := r.Origins().Acquire(t.Context(), []string{origin, alias}[i%2])
			if assert.NoError(t, err) {
				mu.Lock()
				holds = append(holds, h)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Len(t, holds, 32)
	for _, h := range holds {
		assert.Equal(t, holds[0].Number, h.Number)
	}
	mine := fmt.Sprintf("loop%d", unix.Minor(holds[0].Number))
	assert.NotEqual(t, foreign, mine+"/", "a foreign loop device was taken")
	assert.Equal(t, "1", sysfs("/sys/block/"+mine, "ro"))
	for i, h := range holds[1:] {
		wg.Go(func() {
			assert.NoError(t, h.Release())
			if i%3 == 0 {
				assert.NoError(t, h.Release(), "a second release is no other's")
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 1, r.Origins().Users(origin))
	assert.Contains(t, allLoops(t), mine+"/")

	// A next life, while something still uses it (the device of a living sandbox).
	use, err := os.Open("/dev/" + mine)
	require.NoError(t, err)
	r.reborn()
	adopted, err := r.Origins().Acquire(t.Context(), alias)
	require.NoError(t, err)
	assert.Equal(t, holds[0].Number, adopted.Number, "not adopted")
	require.NoError(t, use.Close())
	assert.Contains(t, allLoops(t), mine+"/", "it is held")
	require.NoError(t, adopted.Release())
	soon(t, func() bool { return !strings.Contains(allLoops(t), mine+"/") }, func() string { return allLoops(t) })
	assert.Contains(t, allLoops(t), foreign)

	other := newRig(t)
	h, err := r.Origins().Acquire(t.Context(), origin)
	require.NoError(t, err)
	h2, err := other.Origins().Acquire(t.Context(), origin)
	require.NoError(t, err)
	assert.NotEqual(t, h.Number, h2.Number, "another owner's loop device was adopted")
	require.NoError(t, h.Release())
	require.NoError(t, h2.Release())
}
