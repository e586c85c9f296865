package devicemapper

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
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
	"go.uber.org/goleak"

	"wrenn/impl/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// rig is a Manager with a directory of its own, at whose end nothing may be left.
type rig struct {
	*Manager
	t   testing.TB
	dir string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	need.DeviceMapper(t)
	r := &rig{t: t, dir: t.TempDir()}
	devices, loops, fds := allDevices(t), allLoops(t), openFiles(t)
	r.Manager = open(t, r.dir)
	t.Cleanup(func() {
		if r.Manager != nil {
			require.NoError(t, r.Close())
		}
		soon(t, func() bool {
			return allDevices(t) == devices && allLoops(t) == loops && openFiles(t) == fds
		}, func() string { return allDevices(t) + allLoops(t) + openFiles(t) })
	})
	return r
}

func open(t testing.TB, dir string) *Manager {
	t.Helper()
	m, err := Open(Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return m
}

// soon waits for what the kernel does behind our back, 10 s at most.
func soon(t testing.TB, cond func() bool, left func() string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "something is left", left())
		}
	}
}

func allDevices(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("dmsetup", "ls").CombinedOutput()
	require.NoError(t, err, "%s", out)
	nodes, err := filepath.Glob("/dev/mapper/*")
	require.NoError(t, err)
	return string(out) + strings.Join(nodes, "\n")
}

func allLoops(t testing.TB) string {
	t.Helper()
	bound, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	var out []string
	for _, b := range bound {
		out = append(out, b+" "+sysfs(filepath.Dir(b), "backing_file"))
	}
	return strings.Join(out, "\n")
}

func openFiles(t testing.TB) string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var out []string
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "/") {
			out = append(out, to)
		}
	}
	return strings.Join(out, "\n")
}

// origin makes a file of noise.
func (r *rig) origin(name string, size int64) string {
	path := filepath.Join(r.dir, name)
	f, err := os.Create(path)
	require.NoError(r.t, err)
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), size)
	require.NoError(r.t, err)
	require.NoError(r.t, f.Close())
	return path
}

func (r *rig) disk(id, origin string, size int64) Disk {
	return Disk{ID: id, Origin: origin, Size: size, Cow: filepath.Join(r.dir, id+".cow")}
}

func (r *rig) create(d Disk) string {
	r.t.Helper()
	path, err := r.Create(r.t.Context(), d)
	require.NoError(r.t, err)
	return path
}

func (r *rig) remove(id string) {
	r.t.Helper()
	require.NoError(r.t, r.Remove(r.t.Context(), r.disk(id, "", 0)))
}

// reborn is the next life of the process: this one's memory and files are gone, the kernel's part is not.
func (r *rig) reborn() {
	r.t.Helper()
	require.NoError(r.t, r.Close())
	r.Manager = open(r.t, r.dir)
}

func write(t testing.TB, path string, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(data, offset)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data
}

func sumOf(t testing.TB, path string) string {
	t.Helper()
	sum := sha256.Sum256(read(t, path))
	return hex.EncodeToString(sum[:])
}

func noise(seed byte, size int) []byte {
	out := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(out)
	return out
}

func assertEqualBytes(t testing.TB, want, got []byte, what string) {
	t.Helper()
	if !assert.Len(t, got, len(want), what) {
		return
	}
	for i := range want {
		if want[i] != got[i] {
			assert.Fail(t, "wrong byte", "%s: at %d: %#x instead of %#x", what, i, got[i], want[i])
			return
		}
	}
}
