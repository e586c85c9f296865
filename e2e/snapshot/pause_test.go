package snapshot_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/envdclient"
)

// counter counts in its memory, ten times a second, into a file that it keeps open and that has no name any
// more, and shows the last count to whoever asks by a signal. The signal's handler leaves the showing to the
// loop: between the count and its writing the two differ by right.
const counter = `
import os, signal, time
f = open("/home/user/deleted", "w+"); os.unlink("/home/user/deleted")
n = 0
asked = False
def ask(*_):
    global asked
    asked = True
def show():
    f.seek(0); lines = f.read().split()
    ok = [int(x) for x in lines] == list(range(1, n + 1))
    with open("/home/user/shown.new", "w") as out: out.write("%d %s ends with %s\n" % (n, ok, lines[-3:]))
    os.rename("/home/user/shown.new", "/home/user/shown")
signal.signal(signal.SIGUSR1, ask)
open("/home/user/ready", "w").close()
while True:
    n += 1
    f.seek(0, 2); f.write("%d\n" % n); f.flush()
    if asked:
        asked = False
        show()
    time.sleep(0.1)
`

// counted asks the counter for its count; it must have lost none.
func counted(t *testing.T, exec func(cmd string, args ...string) string, pid string) (n int) {
	t.Helper()
	out := exec("sh", "-ec", `rm -f shown; kill -USR1 "$1"; for i in $(seq 100); do if [ -f shown ]; then cat shown; exit; fi; sleep 0.1; done; exit 1`, "sh", pid)
	var ok string
	_, err := fmt.Sscan(out, &n, &ok)
	require.NoError(t, err, "%q", out)
	assert.Equal(t, "True", ok, "the open file has not what was written to it: %s", out)
	return n
}

// TestS05_ProcessesFilesAndTerminalsSurviveAPause of a real machine: pids, memory, open files that have no
// name, terminals with what they showed; and the clock is right.
func TestS05_ProcessesFilesAndTerminalsSurviveAPause(t *testing.T) {
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	box := s.Create()
	exec := func(cmd string, args ...string) string { return s.Exec(box, cmd, args...) }
	guest := s.Guest(box)
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	defer cancel()
	require.NoError(t, guest.WriteFile(ctx, "", "/home/user/counter.py", strings.NewReader(counter), int64(len(counter))))
	pid := strings.TrimSpace(exec("sh", "-c", "setsid python3 counter.py >/dev/null 2>&1 & echo $!"))
	assert.Equal(t, "0::/wrenn-user\n", exec("cat", "/proc/self/cgroup"), "users' processes are not in a group that can be frozen")
	session, err := guest.PTY(ctx, envdclient.PTYRequest{Cmd: "/bin/bash", Args: []string{"-i", "-l"}, Env: map[string]string{"TERM": "dumb"}})
	require.NoError(t, err)
	terminal := session.PID
	_, err = session.Write([]byte("x=kept; echo shown $((6*7)) before\n"))
	require.NoError(t, err)
	awaitOutput(t, session, "shown 42 before")
	exec("sh", "-ec", `for i in $(seq 600); do if [ -f ready ]; then exit; fi; sleep 0.1; done; exit 1`)
	bootID := exec("cat", "/proc/sys/kernel/random/boot_id")

	for i := range 3 {
		n := counted(t, exec, pid)
		cycle(t, s, box.SandboxID, 1500*time.Millisecond)
		assert.Less(t, clockOff(t, s, box), 500*time.Millisecond, "the guest's clock")
		_, err := io.Copy(io.Discard, session)
		require.Error(t, err, "a stream outlives the pause")
		m := counted(t, exec, pid)
		assert.Greater(t, m, n, "the process stands still")
		session, err = guest.AttachPTY(ctx, terminal)
		require.NoError(t, err)
		awaitOutput(t, session, "shown 42 before")
		_, err = session.Write(fmt.Appendf(nil, "echo $x through $((%d+1)) pauses\n", i))
		require.NoError(t, err)
		awaitOutput(t, session, fmt.Sprintf("kept through %d pauses", i+1))
		assert.Equal(t, bootID, exec("cat", "/proc/sys/kernel/random/boot_id"), "it has booted anew")
	}
	require.NoError(t, session.Close())

	// With files alone it boots anew.
	exec("sh", "-c", "echo content >file")
	_, err = s.Client.Pause(ctx, box.SandboxID, true)
	require.NoError(t, err)
	_, err = s.Client.Resume(ctx, box.SandboxID, 600, false)
	require.NoError(t, err)
	assert.NotEqual(t, bootID, exec("cat", "/proc/sys/kernel/random/boot_id"))
	assert.Equal(t, "content\n", exec("cat", "file"))

	// And what is paused can be destroyed.
	_, err = s.Client.Pause(ctx, box.SandboxID, false)
	require.NoError(t, err)
	require.NoError(t, s.Client.Kill(ctx, box.SandboxID))
	s.Stop()
	before.Same(t)
}

// awaitOutput reads a terminal until it has shown text.
func awaitOutput(t *testing.T, session *envdclient.Session, text string) {
	t.Helper()
	found := make(chan string, 1)
	go func() {
		var seen strings.Builder
		buf := make([]byte, 4096)
		for !strings.Contains(seen.String(), text) {
			n, err := session.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				break
			}
		}
		found <- seen.String()
	}()
	select {
	case seen := <-found:
		require.Contains(t, seen, text)
	case <-time.After(harness.Patience):
		require.Fail(t, "the terminal does not show "+text)
	}
}
