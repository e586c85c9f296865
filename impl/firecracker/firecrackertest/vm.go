package firecrackertest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/firecracker"
)

// bootLimit is how long a guest may take to reach user space. Emulated and idle it takes 1.5 s; several
// at once on a busy machine have been seen to take 15.
const bootLimit = 90 * time.Second

// stepLimit bounds everything that is over in milliseconds on an idle machine.
const stepLimit = 30 * time.Second

// vm is one VMM process under test.
type vm struct {
	*firecracker.Client
	t       *testing.T
	process *firecracker.Process
	dir     string // where it works
	socket  string
	console string
}

func (s *suite) launch(t *testing.T, netns string) *vm {
	t.Helper()
	// Not t.TempDir: its path grows with the test's name, and a socket's must stay under 104 bytes.
	dir, err := os.MkdirTemp("", "fct") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	v := &vm{t: t, dir: dir, socket: filepath.Join(dir, "api.sock"), console: filepath.Join(dir, "console")}
	v.process, err = firecracker.Launch(t.Context(), firecracker.LaunchConfig{
		Binary: s.binary, ID: "conformance-1", Netns: netns, Dir: dir, SocketPath: v.socket, ConsolePath: v.console,
		Env: s.env, ReadyTimeout: stepLimit,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		// t.Context is over when clean-ups run.
		assert.NoError(t, v.process.Kill(context.WithoutCancel(t.Context())))
	})
	v.Client = firecracker.NewClient(v.socket)
	t.Cleanup(v.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", v.output())
		}
	})
	return v
}

// boot configures and starts a guest that does task, and waits until it is up.
func (s *suite) boot(t *testing.T, v *vm, task string) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, v.PutMachineConfig(ctx, firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: memMiB, TrackDirtyPages: true}))
	require.NoError(t, v.PutBootSource(ctx, firecracker.BootSource{
		KernelImagePath: s.guest.Kernel, InitrdPath: s.guest.Initramfs, BootArgs: s.guest.Args(task)}))
	begin := time.Now()
	require.NoError(t, v.Start(ctx))
	started := time.Since(begin)
	v.await(`WRENN-TEST up \S+`, bootLimit)
	t.Logf("InstanceStart answered after %s, the guest was up after %s", started.Round(time.Millisecond),
		time.Since(begin).Round(time.Millisecond))
}

func (v *vm) output() []byte {
	raw, err := os.ReadFile(v.console)
	if err != nil {
		return []byte("(" + err.Error() + ")")
	}
	return raw
}

// await waits for a match on the console.
func (v *vm) await(pattern string, limit time.Duration) {
	v.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.Now().Add(limit)
	for {
		if re.Match(v.output()) {
			return
		}
		if time.Now().After(deadline) {
			require.FailNow(v.t, "not on the console in time", "%s within %s", pattern, limit)
		}
		select {
		case <-v.process.Done():
			if re.Match(v.output()) {
				return
			}
			require.FailNow(v.t, "the vmm has ended", "%s, while waiting for %s", v.process.ExitStatus(), pattern)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ticks is how far the counting guest has got.
func (v *vm) ticks() int {
	v.t.Helper()
	found := regexp.MustCompile(`WRENN-TEST tick (\d+)\r?\n`).FindAllSubmatch(v.output(), -1)
	if len(found) == 0 {
		return -1
	}
	n, err := strconv.Atoi(string(found[len(found)-1][1]))
	require.NoError(v.t, err)
	return n
}

// firstTick is the first number that the counting guest has told on this console, once it has.
func (v *vm) firstTick() int {
	v.t.Helper()
	v.await(`WRENN-TEST tick (\d+)\r?\n`, stepLimit)
	n, err := strconv.Atoi(string(regexp.MustCompile(`WRENN-TEST tick (\d+)\r?\n`).FindSubmatch(v.output())[1]))
	require.NoError(v.t, err)
	return n
}

func (v *vm) awaitTicks(atLeast int) {
	v.t.Helper()
	require.Eventually(v.t, func() bool { return v.ticks() >= atLeast }, stepLimit, 20*time.Millisecond,
		"the guest does not count on to %d", atLeast)
}

// awaitExit waits for the end of the process and returns how it ended.
func (v *vm) awaitExit() firecracker.ExitStatus {
	v.t.Helper()
	select {
	case <-v.process.Done():
		return v.process.ExitStatus()
	case <-time.After(stepLimit):
		require.FailNow(v.t, "the vmm goes on")
		return firecracker.ExitStatus{}
	}
}

// descendants lists the living processes below pid.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	children := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		require.NoError(t, err)
		parent, err := strconv.Atoi(fields[1])
		require.NoError(t, err)
		children[parent] = append(children[parent], child)
	}
	var all []int
	for wave := children[pid]; len(wave) > 0; {
		all = append(all, wave...)
		var next []int
		for _, p := range wave {
			next = append(next, children[p]...)
		}
		wave = next
	}
	return all
}

// alive tells whether a process runs; a zombie does not.
func alive(pid int) bool {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	return fields[0] != "Z" && fields[0] != "X"
}
