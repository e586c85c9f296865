package freezer

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hierarchies are a cgroup2 mount where the machine lets us have one, and none.
func hierarchies(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"signals": ""}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dir := filepath.Join(root, "wrenn-test-"+strconv.Itoa(os.Getpid())+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.freeze")); err != nil {
			_ = os.Remove(dir)
			continue
		}
		t.Cleanup(func() { assert.NoError(t, os.Remove(dir)) })
		all["group"] = dir
		break
	}
	return all
}

// counter starts a shell whose child counts into a file: a process, its child, and with daemon one that has
// lost its parent but not its session.
func counter(t *testing.T, f *Freezer, daemon bool) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "count")
	script := `n=0; while :; do n=$((n+1)); echo $n >"$1.new"; mv "$1.new" "$1"; sleep 0.01; done`
	if daemon {
		script = "(" + script + `) & sleep 0.05; exit`
	}
	cmd := exec.Command("/bin/sh", "-c", script, "sh", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	f.Join(cmd.SysProcAttr)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		for range 500 {
			if syscall.Kill(-cmd.Process.Pid, 0) != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error("a process outlives the test")
	})
	require.Eventually(t, func() bool { return read(t, path) > 3 }, 10*time.Second, time.Millisecond)
	return path
}

func read(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	require.NoError(t, err)
	return n
}

func TestS05_FrozenProcessesStandStillAndGoOn(t *testing.T) {
	for name, root := range hierarchies(t) {
		t.Run(name, func(t *testing.T) {
			f, err := New(root)
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, f.Close()) })
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.NoError(t, f.Freeze(ctx), "with no process at all")
			require.NoError(t, f.Thaw())
			path := counter(t, f, false)
			var daemon string
			if root != "" {
				daemon = counter(t, f, true)
			}
			for range 3 {
				require.NoError(t, f.Freeze(ctx))
				require.NoError(t, f.Freeze(ctx), "twice")
				before := read(t, path)
				time.Sleep(100 * time.Millisecond)
				assert.Equal(t, before, read(t, path), "it counts on")
				if daemon != "" {
					before := read(t, daemon)
					time.Sleep(50 * time.Millisecond)
					assert.Equal(t, before, read(t, daemon), "what has lost its parent counts on")
				}
				require.NoError(t, f.Thaw())
				require.NoError(t, f.Thaw(), "twice")
				require.Eventually(t, func() bool { return read(t, path) > before }, 10*time.Second, time.Millisecond, "it does not go on")
			}
		})
	}
}

func TestS05_AFreezeThatIsGivenUpLeavesThemRunning(t *testing.T) {
	for name, root := range hierarchies(t) {
		t.Run(name, func(t *testing.T) {
			f, err := New(root)
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, f.Close()) })
			path := counter(t, f, false)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := f.Freeze(ctx); err == nil { // it was quick
				require.NoError(t, f.Thaw())
			}
			before := read(t, path)
			require.Eventually(t, func() bool { return read(t, path) > before }, 10*time.Second, time.Millisecond)
		})
	}
}

// TestARehearsalStopsNobody, nor lets anybody go on.
func TestARehearsalStopsNobody(t *testing.T) {
	for name, root := range hierarchies(t) {
		t.Run(name, func(t *testing.T) {
			f, err := New(root)
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, f.Close()) })
			path := counter(t, f, false)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.NoError(t, f.Rehearse(ctx))
			before := read(t, path)
			require.Eventually(t, func() bool { return read(t, path) > before }, 10*time.Second, time.Millisecond, "it does not go on")
			require.NoError(t, f.Freeze(ctx))
			before = read(t, path)
			require.NoError(t, f.Rehearse(ctx))
			time.Sleep(50 * time.Millisecond)
			assert.Equal(t, before, read(t, path), "it goes on")
			require.NoError(t, f.Thaw())
			if root == "" {
				return
			}
			require.NoError(t, os.Mkdir(f.dir+"-rehearsal", 0o755), "what a killed one leaves")
			require.NoError(t, f.Rehearse(ctx))
			assert.NoDirExists(t, f.dir+"-rehearsal")
		})
	}
}

func TestS05_NoHierarchyIsSaidAndWorksBySignals(t *testing.T) {
	f, err := New(filepath.Join(t.TempDir(), "none"))
	require.Error(t, err)
	path := counter(t, f, false)
	require.NoError(t, f.Freeze(t.Context()))
	before := read(t, path)
	time.Sleep(50 * time.Millisecond)
	assert.Equal(t, before, read(t, path))
	require.NoError(t, f.Close())
}
