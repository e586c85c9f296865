package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/e2e/harness"
	"wrenn/impl/envdclient"
	"wrenn/impl/firecracker"
	"wrenn/impl/network"
)

func TestAGuestIsTheTemplatesUserSpace(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	b := r.start(t, 1)
	assert.Equal(t, "user\n/home/user\nbox\n", b.exec("", "whoami; pwd; hostname"))
	assert.Equal(t, "root\n", b.exec("", "sudo -n whoami"))
	assert.Equal(t, "42\n", b.exec("", "python3 -c 'print(6*7)'"))
	assert.Equal(t, "procvmm-guest", strings.TrimRight(b.exec("root", "cat /proc/1/cmdline"), "\x00"))
	assert.Equal(t, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n", b.exec("", "cat /etc/resolv.conf"))
	assert.Equal(t, "eth0\nlo\n", b.exec("", "ls /sys/class/net"))
	assert.NotContains(t, b.exec("root", "cat /proc/self/mounts"), r.disk, "the host's mounts are seen")
	assert.Contains(t, string(b.output()), "listening", "the daemon's log is on the console")

	text := strings.Repeat("line\n", 100_000)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, b.guest.WriteFile(ctx, "", "new/file.txt", strings.NewReader(text), int64(len(text))))
	body, err := b.guest.ReadFile(ctx, "", "/home/user/new/file.txt")
	require.NoError(t, err)
	got, err := io.ReadAll(body)
	require.NoError(t, errors.Join(err, body.Close()))
	assert.Equal(t, text, string(got))

	pty, err := b.guest.PTY(ctx, envdclient.PTYRequest{Cmd: "bash", Args: []string{"--norc"}, Size: envdclient.Size{Cols: 80, Rows: 24}})
	require.NoError(t, err)
	_, err = io.WriteString(pty, "tty; stty size; exit 3\n")
	require.NoError(t, err)
	screen, err := io.ReadAll(pty)
	require.NoError(t, err)
	assert.Contains(t, string(screen), "/dev/pts/0")
	assert.Contains(t, string(screen), "24 80")
	exit, err := pty.Wait()
	require.NoError(t, errors.Join(err, pty.Close()))
	assert.Equal(t, 3, exit.Code)
}

// counter counts the bytes that are written to it.
type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) { c.Add(int64(len(p))); return len(p), nil }

func TestPauseStopsEveryProcess(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	b := r.start(t, 1)
	// Each of eight processes lives for a millisecond and leaves a successor, so a pause meets some that it has not seen.
	const chain = `python3 -c '
import os, time
for _ in range(3): os.fork()
while True:
    os.write(1, b"x"); time.sleep(0.001)
    if os.fork(): os._exit(0)' & sleep 1000`
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ticks counter
	counting := make(chan error, 1)
	go func() {
		_, err := b.guest.Exec(ctx, envdclient.ExecRequest{Cmd: "bash", Args: []string{"-c", chain}, Stdout: &ticks})
		counting <- err
	}()
	pid := strings.TrimSpace(b.exec("", "sleep 1000 >/dev/null 2>&1 & echo $!; kill -STOP $!"))
	more := func(than int64) bool { return ticks.Load() > than }
	for round := range 5 {
		seen := ticks.Load()
		require.Eventually(t, func() bool { return more(seen + 3) }, patience, time.Millisecond, "it does not count")
		begin := time.Now()
		require.NoError(t, b.api.Pause(t.Context()))
		took := time.Since(begin)
		require.NoError(t, b.api.Pause(t.Context()), "pausing twice is no error")
		info, err := b.api.Info(t.Context())
		require.NoError(t, err)
		assert.Equal(t, firecracker.StatePaused, info.State)
		time.Sleep(100 * time.Millisecond) // output that was on its way may still arrive
		seen = ticks.Load()
		time.Sleep(300 * time.Millisecond)
		assert.Equal(t, seen, ticks.Load(), "the guest runs on while it is paused")
		require.NoError(t, b.api.Resume(t.Context()))
		t.Logf("round %d: pause took %v", round, took)
	}
	seen := ticks.Load()
	require.Eventually(t, func() bool { return more(seen + 3) }, patience, time.Millisecond, "it does not go on")
	assert.Contains(t, b.exec("", "cat /proc/"+pid+"/stat"), ") T ", "a process that was stopped before goes on")
	cancel()
	require.Error(t, <-counting)
}

func TestAGuestThatEndsItselfEndsTheVMMWithZero(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	rebooted := firecracker.ExitStatus{Known: true, Code: 0}
	// Whether a program's own end is still told depends on who is faster.
	asRoot := func(b *box, cmd string, args ...string) {
		_, _ = b.guest.Exec(t.Context(), envdclient.ExecRequest{User: "root", Cmd: cmd, Args: args})
	}
	for name, end := range map[string]func(*box){
		"envd dies":    func(b *box) { asRoot(b, "pkill", "-KILL", "envd") },
		"reboot":       func(b *box) { asRoot(b, "python3", "-c", "import ctypes; ctypes.CDLL(None).reboot(0x1234567)") },
		"ctrl-alt-del": func(b *box) { assert.NoError(t, b.api.CtrlAltDel(t.Context())) },
	} {
		t.Run(name, func(t *testing.T) {
			b := r.start(t, 1)
			end(b)
			assert.Equal(t, rebooted, b.awaitExit())
		})
	}
	assert.Empty(t, processes(t))
}

// TestAGuestsRootDoesNotSteerTheHostByAccident asks whether it could write, and writes nothing.
func TestAGuestsRootDoesNotSteerTheHostByAccident(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	b := r.start(t, 1)
	assert.Equal(t, "none\n", b.exec("root", "for f in /proc/sysrq-trigger /proc/sys/kernel/panic; do test -w $f && echo $f; done; echo none"))
	for name, bit := range map[string]uint{"SYS_TIME": unix.CAP_SYS_TIME, "SYS_MODULE": unix.CAP_SYS_MODULE, "MKNOD": unix.CAP_MKNOD} {
		assert.Equal(t, "0\n", b.exec("root", fmt.Sprintf("echo $(( (0x$(awk '/CapEff/ {print $2}' /proc/self/status) >> %d) & 1 ))", bit)), name)
	}
}

func TestAGuestThatCannotStartSaysWhy(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	require.NoError(t, os.WriteFile(r.disk, make([]byte, 1<<20), 0o600))
	b := r.boot(t, 1)
	assert.Equal(t, firecracker.ExitStatus{Known: true, Code: 1}, b.awaitExit())
	assert.Contains(t, string(b.output()), "mount the root drive "+r.disk)
}

// TestKilledVMMLeavesNothing kills the VMM alone, not its group: what it started must end by itself, paused
// or not, and free the disk and the TAP for the next one.
func TestKilledVMMLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	before := harness.Take(t)
	for _, pause := range []bool{false, true} {
		b := r.start(t, 1)
		b.exec("", "setsid sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 &")
		if pause {
			require.NoError(t, b.api.Pause(t.Context()))
		}
		pids, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", b.process.Identity().PID))
		require.NoError(t, err)
		g := &guest{pids: guestNamespace(t, b, pids)}
		require.GreaterOrEqual(t, members(t, g), 4, "init, envd and two sleepers")
		require.NoError(t, b.process.Signal(syscall.SIGKILL))
		assert.Equal(t, syscall.SIGKILL, b.awaitExit().Signal)
		require.Eventually(t, func() bool {
			return members(t, g) == 0 && len(loops(t, r.disk)) == 0
		}, patience, 5*time.Millisecond, "the guest goes on")
		before.Same(t)
	}
	assert.Empty(t, processes(t))
}

// members counts the processes of a guest.
func members(t *testing.T, g *guest) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && g.holds(pid) {
			n++
		}
	}
	return n
}

// guestNamespace is the pid namespace of the VMM's child, which is not the VMM's own.
func guestNamespace(t *testing.T, b *box, own string) string {
	t.Helper()
	parent := fmt.Sprintf("PPid:\t%d\n", b.process.Identity().PID)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	i := slices.IndexFunc(dirs, func(dir string) bool {
		status, err := os.ReadFile(dir + "/status")
		return err == nil && strings.Contains(string(status), parent)
	})
	require.GreaterOrEqual(t, i, 0, "the VMM has no child")
	pids, err := os.Readlink(dirs[i] + "/ns/pid")
	require.NoError(t, err)
	require.NotEqual(t, own, pids)
	return pids
}

// TestN09_TheTAPSeesTheGuestsFrames has the namespace's rules answer a guest, which no loopback would.
func TestN09_TheTAPSeesTheGuestsFrames(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	b := r.start(t, 1)
	const dial = `python3 - <<'EOF'
import socket
s = socket.socket(); s.settimeout(10)
print(s.connect_ex(("198.51.100.1", 80)))
EOF`
	assert.Equal(t, fmt.Sprintln(int(syscall.EHOSTUNREACH)), b.exec("", dial), "an empty policy refuses")
	require.NoError(t, r.SetPolicy(t.Context(), 1, network.Policy{AllowInternet: true}))
	assert.Equal(t, fmt.Sprintln(int(syscall.ENETUNREACH)), b.exec("", dial), "the policy opens, and this host has no route")
}

// TestN07_TheGuestsSendingIsLimited asserts that 9 MB take their time, not that they take no more.
func TestN07_TheGuestsSendingIsLimited(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	limit, err := firecracker.Bandwidth(4_000_000, 1_000_000)
	require.NoError(t, err)
	r.limit = &firecracker.RateLimiter{Bandwidth: &limit}
	b := r.start(t, 1)
	begin := time.Now()
	assert.Len(t, b.exec("", "head -c 9000000 /dev/zero"), 9_000_000)
	assert.Greater(t, time.Since(begin), 1800*time.Millisecond, "1 MB at once, 8 MB at 4 MB/s")
}
