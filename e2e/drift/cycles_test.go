package drift_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/envdclient"
)

// The cycles of one sandbox, and what each makes dirty beside what the program does by itself.
const (
	cycles, shortCycles = 50, 4
	heapMiB             = 48
	dirtyMiB            = 8
)

// generations is how many layers of memory are kept before they become a new base.
const generations = 8

// TestS06_PausesDoNotDrift pauses and resumes one sandbox again and again: no byte is wrong, every process,
// connection, timer and terminal goes on, the clock is right, and neither disk nor agent grows.
func TestS06_PausesDoNotDrift(t *testing.T) {
	before := harness.Take(t)
	s := start(t)
	box := s.run(heapMiB)
	guest := s.Guest(box)
	terminal := s.openTerminal(guest)
	n := cycles
	if testing.Short() {
		n = shortCycles
	}
	var pauses, resumes []float64
	var clocks []time.Duration
	var used []int64
	var held []int
	var open string
	for i := range n {
		s.dirty(box, dirtyMiB)
		last := s.check(box, report{})
		pauses = append(pauses, total(s.pause(box)))
		used = append(used, allocated(t, filepath.Join(s.Dir, "agent", "sandboxes", box.SandboxID)))
		began := time.Now()
		box = s.resume(box)
		resumes = append(resumes, float64(time.Since(began).Milliseconds()))
		r := s.check(box, last)
		closeEnough(t, r)
		clocks = append(clocks, r.clockError())
		s.moved(box, r)
		terminal.goesOn(guest, i)
		held = append(held, descriptors(t, s.PID()))
		open = shell(t, fmt.Sprintf("ls -l /proc/%d/fd | sed 's/.* -> //' | sort | uniq -c", s.PID()))
	}
	t.Logf("pause p50 %.0f ms, resume p50 %.0f ms, clock off by %v at most, %d MiB in use after the first pause and %d at most, %d descriptors at first and %d at the end",
		median(pauses), median(resumes), slices.Max(clocks), used[0]>>20, slices.Max(used)>>20, held[0], held[n-1])
	// A chain is a base and its layers; while they are merged, the new base too.
	layer := int64(0)
	for i := 1; i < n; i++ {
		layer = max(layer, used[i]-used[i-1])
	}
	assert.LessOrEqual(t, slices.Max(used), 2*used[0]+(generations+1)*layer*11/10, "the disk grows beyond what was dirty")
	// Connections come and go; what is never given back would be one more with each pause at least.
	few := max(2, n/5)
	assert.LessOrEqual(t, slices.Min(held[n-few:]), slices.Max(held[:few]), "the agent holds more and more files: %v; at the end\n%s", held, open)
	require.NoError(t, s.Client.Kill(t.Context(), box.SandboxID))
	s.end()
	before.Same(t)
}

// terminal is a shell in the guest that a person comes back to.
type terminal struct {
	t   *testing.T
	pid uint32
}

func (s *system) openTerminal(guest *envdclient.Client) *terminal {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), harness.Patience)
	defer cancel()
	session, err := guest.PTY(ctx, envdclient.PTYRequest{Cmd: "/bin/bash", Args: []string{"--norc"}, Env: map[string]string{"TERM": "dumb", "PS1": "$ "}})
	require.NoError(s.t, err)
	_, err = session.Write([]byte("n=1000; echo begun at $n\n"))
	require.NoError(s.t, err)
	awaitOutput(s.t, session, "begun at 1000")
	require.NoError(s.t, session.Close())
	return &terminal{s.t, session.PID}
}

// goesOn attaches to the shell, finds its history and its variable, and gives it the next command.
func (term *terminal) goesOn(guest *envdclient.Client, i int) {
	term.t.Helper()
	ctx, cancel := context.WithTimeout(term.t.Context(), harness.Patience)
	defer cancel()
	session, err := guest.AttachPTY(ctx, term.pid)
	require.NoError(term.t, err)
	awaitOutput(term.t, session, "begun at 1000")
	_, err = session.Write([]byte("n=$((n+1)); echo now at $n\n"))
	require.NoError(term.t, err)
	awaitOutput(term.t, session, fmt.Sprintf("now at %d", 1001+i))
	require.NoError(term.t, session.Close())
}

// awaitOutput reads from a terminal until want has come.
func awaitOutput(t *testing.T, session *envdclient.Session, want string) {
	t.Helper()
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), want+"\r\n") {
		n, err := session.Read(buf)
		got.Write(buf[:n])
		require.NoError(t, err, "%q did not come: %q", want, got.String())
	}
}

// allocated is what a folder takes on its disk in bytes, each file once.
func allocated(t *testing.T, dir string) int64 {
	t.Helper()
	out := shell(t, "du -s --block-size=1 "+dir)
	n, err := strconv.ParseInt(strings.Fields(out)[0], 10, 64)
	require.NoError(t, err)
	return n
}

// descriptors is how many files a process has open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	found, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	return len(found)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
