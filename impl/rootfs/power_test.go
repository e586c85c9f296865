package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/need"
)

// power is a host's disk whose power can be cut: ext4 on dm-flakey, which from then on drops what is written,
// or fails it.
type power struct {
	t           *testing.T
	loop, mount string
	sectors     string
}

const flaky = "test-flaky"

func newPower(t *testing.T) *power {
	t.Helper()
	need.DeviceMapper(t)
	need.Program(t, "dmsetup", "losetup", "mkfs.ext4")
	p := &power{t: t, mount: t.TempDir()}
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 128*mib))
	p.loop = run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", p.loop) })
	p.sectors = fmt.Sprint(128 * mib / 512)
	run(t, "dmsetup", "create", flaky, "--table", p.table("up", ""))
	t.Cleanup(func() { run(t, "dmsetup", "remove", "--retry", flaky) })
	run(t, "dmsetup", "mknodes")
	run(t, "mkfs.ext4", "-q", "/dev/mapper/"+flaky)
	p.on()
	t.Cleanup(func() { _ = unix.Unmount(p.mount, 0) })
	return p
}

// table says what the disk does: all that it is told, or from now on nothing.
func (p *power) table(state, feature string) string {
	if state == "up" {
		return "0 " + p.sectors + " flakey " + p.loop + " 0 1000 0"
	}
	return "0 " + p.sectors + " flakey " + p.loop + " 0 0 1000 1 " + feature
}

// load changes the disk under the file system. Nothing is flushed first: what the kernel holds back is lost.
func (p *power) load(table string) {
	p.t.Helper()
	run(p.t, "dmsetup", "suspend", "--noflush", "--nolockfs", flaky)
	run(p.t, "dmsetup", "load", flaky, "--table", table)
	run(p.t, "dmsetup", "resume", flaky)
}

func (p *power) on() {
	p.t.Helper()
	require.NoError(p.t, unix.Mount("/dev/mapper/"+flaky, p.mount, "ext4", 0, ""))
}

// cut is the loss of power; what ran is gone by back, which starts the host again.
func (p *power) cut(feature string) {
	p.t.Helper()
	p.load(p.table("down", feature))
}

func (p *power) back() {
	p.t.Helper()
	require.NoError(p.t, unix.Unmount(p.mount, 0))
	p.load(p.table("up", ""))
	p.on()
}

// TestS08_SnapshotsSurviveALossOfPower: at each point at which something was promised the power fails.
func TestS08_SnapshotsSurviveALossOfPower(t *testing.T) {
	for _, feature := range []string{"drop_writes", "error_writes"} {
		for _, mode := range []Mode{ModeCopy, ModeSnapshot} {
			t.Run(feature+" "+string(mode), func(t *testing.T) { losePower(t, feature, mode) })
		}
	}
}

func losePower(t *testing.T, feature string, mode Mode) {
	p := newPower(t)
	r := newRig(t, mode, filepath.Join(p.mount, "agent"))
	unix.Sync()      // the image, and whatever else was there before
	host := func() { // the host starts again
		r.shut()
		p.back()
		r.open(mode)
	}
	dir, content := r.create("a", 6)
	r.write(dir, content, mib, noise(1, 2*mib))
	snapshot := r.sandbox("linked")
	require.NoError(t, atomicfile.SyncDir(r.dir))
	require.NoError(t, r.Link(t.Context(), dir, snapshot))
	require.NoError(t, atomicfile.SyncDir(snapshot))
	p.cut(feature)
	r.kill(dir)
	_ = r.Detach(t.Context(), dir) // the power takes it away
	host()
	linked := append([]byte(nil), content...)
	r.holds(snapshot, linked, "after a link")

	// A sandbox goes on from the snapshot, and is itself copied into another.
	running, content := r.sandbox("b"), linked
	_ = r.Remove(t.Context(), running)
	require.NoError(t, r.Clone(t.Context(), snapshot, running))
	require.NoError(t, r.Attach(t.Context(), running))
	content = append([]byte(nil), content...)
	r.write(running, content, 0, noise(2, 3*mib))
	cloned := r.sandbox("cloned")
	require.NoError(t, atomicfile.SyncDir(r.dir))
	require.NoError(t, r.Clone(t.Context(), running, cloned))
	require.NoError(t, r.Sync(t.Context(), cloned))
	require.NoError(t, atomicfile.SyncDir(cloned))
	p.cut(feature)
	r.kill(running)
	_ = r.Detach(t.Context(), running)
	host()
	r.holds(snapshot, linked, "after another's life")
	r.holds(cloned, content, "after a clone")

	// What nothing was promised of does no harm.
	again := r.sandbox("c")
	require.NoError(t, r.Clone(t.Context(), cloned, again))
	require.NoError(t, r.Attach(t.Context(), again))
	r.write(again, make([]byte, 6*mib), mib, noise(3, mib))
	p.cut(feature)
	r.kill(again)
	_ = r.Detach(t.Context(), again)
	host()
	r.holds(snapshot, linked, "in the end")
	r.holds(cloned, content, "in the end")
	for _, id := range []string{"a", "b", "c"} {
		assert.NoError(t, r.Remove(t.Context(), r.sandbox(id)), id)
	}
	r.shut()
}

// holds checks a snapshot's content by a sandbox that starts from it.
func (r *rig) holds(snapshot string, want []byte, when string) {
	r.t.Helper()
	dir := r.sandbox("looks")
	require.NoError(r.t, r.Remove(r.t.Context(), dir))
	require.NoError(r.t, r.Clone(r.t.Context(), snapshot, dir), when)
	require.NoError(r.t, r.Attach(r.t.Context(), dir), when)
	assertSame(r.t, want, r.read(dir), when)
	require.NoError(r.t, r.Remove(r.t.Context(), dir))
}
