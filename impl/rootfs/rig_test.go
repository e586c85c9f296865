package rootfs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

const mib = 1 << 20

// modes are those in which a test of disks runs.
func modes(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	for _, mode := range []Mode{ModeCopy, ModeSnapshot} {
		t.Run(string(mode), func(t *testing.T) { test(t, newRig(t, mode, t.TempDir())) })
	}
}

// rig is a Store with a template of 4 MiB, and directories as an agent has them, at whose end nothing may be
// left in the kernel.
type rig struct {
	*Store
	t   testing.TB
	dir string
	log *bytes.Buffer
	vms map[string]*os.File // what machines that run have open, by directory
}

func newRig(t testing.TB, mode Mode, dir string) *rig {
	t.Helper()
	if mode == ModeSnapshot {
		need.DeviceMapper(t)
	}
	before := kernel(t)
	r := &rig{t: t, dir: dir, vms: make(map[string]*os.File)}
	r.template("base", 4*mib, 0, mib)
	r.open(mode)
	t.Cleanup(func() {
		r.shut()
		left := kernel(t)
		for deadline := time.Now().Add(10 * time.Second); left != before && time.Now().Before(deadline); left = kernel(t) {
			time.Sleep(10 * time.Millisecond)
		}
		assert.Equal(t, before, left, "something is left in the kernel")
	})
	return r
}

func (r *rig) open(mode Mode) {
	r.t.Helper()
	r.log = &bytes.Buffer{}
	var err error
	r.Store, err = NewStore(Config{
		ImageDir: r.image(), Dir: filepath.Join(r.dir, "disks"), Mode: mode, Logger: slog.New(slog.NewTextHandler(r.log, nil)),
	})
	require.NoError(r.t, err)
}

func (r *rig) shut() {
	if r.Store != nil {
		require.NoError(r.t, r.Close())
		r.Store = nil
	}
}

// reborn is the agent's next life.
func (r *rig) reborn() {
	r.t.Helper()
	mode := r.Mode()
	r.shut()
	r.open(mode)
}

func (r *rig) image() string { return filepath.Join(r.dir, "image") }

func (r *rig) templateDisk(name string) string {
	return filepath.Join(r.image(), "templates", name, templateDisk)
}

// template makes, or replaces, a template with 64 KiB of noise at each offset.
func (r *rig) template(name string, size int64, offsets ...int64) {
	r.t.Helper()
	dir := filepath.Join(r.image(), "templates", name)
	require.NoError(r.t, os.RemoveAll(dir))
	require.NoError(r.t, os.MkdirAll(dir, 0o700))
	f, err := os.Create(r.templateDisk(name))
	require.NoError(r.t, err)
	require.NoError(r.t, f.Truncate(size))
	for _, at := range offsets {
		_, err := f.WriteAt(noise(byte(at%251), 64<<10), at)
		require.NoError(r.t, err)
	}
	require.NoError(r.t, f.Sync())
	require.NoError(r.t, f.Close())
	meta := fmt.Sprintf(`{"name":%q,"vcpus":1,"memoryMib":512,"diskMib":%d}`, name, size>>20)
	require.NoError(r.t, os.WriteFile(filepath.Join(dir, templateMeta), []byte(meta), 0o600))
}

// sandbox is the directory of a sandbox or snapshot.
func (r *rig) sandbox(id string) string { return sandboxDir(r.t, r.dir, id) }

// create makes a sandbox's disk and returns its directory and content.
func (r *rig) create(id string, sizeMiB int) (string, []byte) {
	r.t.Helper()
	dir := r.sandbox(id)
	require.NoError(r.t, r.Create(r.t.Context(), "base", dir, sizeMiB))
	return dir, r.read(dir)
}

func (r *rig) read(dir string) []byte {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, DiskName))
	require.NoError(r.t, err)
	return data
}

// write changes the disk as a VMM does: nothing is synced, it stays open, and what the kernel holds back it holds
// back.
func (r *rig) write(dir string, content []byte, at int, data []byte) {
	r.t.Helper()
	vm := r.vms[dir]
	if vm == nil {
		var err error
		vm, err = os.OpenFile(filepath.Join(dir, DiskName), os.O_RDWR, 0)
		require.NoError(r.t, err)
		r.vms[dir] = vm
	}
	_, err := vm.WriteAt(data, int64(at))
	require.NoError(r.t, err)
	copy(content[at:], data)
}

// kill ends the machine.
func (r *rig) kill(dir string) {
	if vm := r.vms[dir]; vm != nil {
		_ = vm.Close()
		delete(r.vms, dir)
	}
}

// act fails the test unless the act succeeds, twice.
func (r *rig) act(what string, act func(ctx context.Context) error) {
	r.t.Helper()
	require.NoError(r.t, act(r.t.Context()), what)
	require.NoError(r.t, act(r.t.Context()), "%s, repeated", what)
}

func (r *rig) attach(dir string) {
	r.t.Helper()
	r.act("attach", func(ctx context.Context) error { return r.Attach(ctx, dir) })
}

func (r *rig) detach(dir string) {
	r.t.Helper()
	r.kill(dir)
	r.act("detach", func(ctx context.Context) error { return r.Detach(ctx, dir) })
}

func (r *rig) clone(from, dir string) {
	r.t.Helper()
	r.act("clone", func(ctx context.Context) error { return r.Clone(ctx, from, dir) })
}

func (r *rig) link(dir, snapshot string) {
	r.t.Helper()
	r.act("link", func(ctx context.Context) error { return r.Link(ctx, dir, snapshot) })
}

func (r *rig) remove(dirs ...string) {
	r.t.Helper()
	for _, dir := range dirs {
		r.kill(dir)
		r.act("remove", func(ctx context.Context) error { return r.Remove(ctx, dir) })
		left, err := os.ReadDir(dir)
		require.NoError(r.t, err)
		assert.Empty(r.t, left, "left in %s", dir)
	}
}

// kernel lists what disks can leave there, and this process's open files.
func kernel(t testing.TB) string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"/sys/block/dm-*", "/dev/mapper/*", "/sys/block/loop*/loop/backing_file"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		out = append(out, found...)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "/") {
			out = append(out, to)
		}
	}
	return strings.Join(out, "\n")
}

func noise(seed byte, size int) []byte {
	out := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(out)
	return out
}

func assertSame(t testing.TB, want, got []byte, what string) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	at := 0
	for at < min(len(want), len(got)) && want[at] == got[at] {
		at++
	}
	assert.Fail(t, "not the same content", "%s: %d and %d bytes, different from %d on", what, len(want), len(got), at)
}

// run runs a program of the system.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}
