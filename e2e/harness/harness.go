// Package harness starts Wrenn as real processes for the end-to-end suites, on this machine or on Hosts that
// are made of namespaces, waits on conditions with deadlines, and counts what exists before and after.
package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// Patience bounds each wait for something that takes seconds at most on an idle machine: a cold boot by
// emulation, a start with a probe of every VMM, a stop that ends several sandboxes. In a machine that is
// itself emulated, with guests nested in it, each takes ten times as long.
const Patience = 5 * time.Minute

// bootTimeout is the most that an agent allows for a create, for the same reason.
const bootTimeout = "2m"

// Root is the directory of go.mod.
func Root(tb testing.TB) string {
	tb.Helper()
	dir, err := moduleRoot()
	require.NoError(tb, err)
	return dir
}

// Build is a path below build/, where `make` puts programs and images.
func Build(tb testing.TB, path string) string {
	tb.Helper()
	return filepath.Join(Root(tb), "build", path)
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("there is no go.mod above the test")
		}
		dir = parent
	}
}

// System is a control plane and an agent in one process, `wrenn up`.
type System struct {
	API
	// Dir is its data directory.
	Dir string

	process *Process
}

// Dir returns a new directory for a System's data, which several starts may share one after the other.
// It is short, because Unix sockets below it are, and goes away with the test.
func Dir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "wrenn-e2e-")
	require.NoError(tb, err)
	tb.Cleanup(func() { assert.NoError(tb, os.RemoveAll(dir)) })
	return dir
}

// Start starts `wrenn up` in dir with further flags, on free ports, and waits until it serves. Its log is
// printed when the test fails. The test ends it by Stop or Kill; what is left at its end is killed.
func Start(tb testing.TB, dir string, flags ...string) *System {
	tb.Helper()
	return startSystem(tb, nil, dir, flags...)
}

// Start is the function Start on a host.
func (h *Host) Start(dir string, flags ...string) *System {
	h.tb.Helper()
	return startSystem(h.tb, h, dir, flags...)
}

func startSystem(tb testing.TB, h *Host, dir string, flags ...string) *System {
	tb.Helper()
	need.Root(tb)
	s := launch(tb, h, dir, flags...)
	deadline := time.Now().Add(Patience)
	for !s.up() {
		select {
		case <-s.process.Done():
			require.FailNow(tb, "wrenn up ended at its start", "%s", s.Log())
		case <-time.After(20 * time.Millisecond):
		}
		require.True(tb, time.Now().Before(deadline), "wrenn up does not serve after %v:\n%s", Patience, s.Log())
	}
	keepProbes(tb, filepath.Join(dir, "agent"))
	s.connect()
	return s
}

// StartFails starts `wrenn up` where it must refuse, and returns what it logged.
func StartFails(tb testing.TB, dir string, flags ...string) string {
	tb.Helper()
	need.Root(tb)
	s := launch(tb, nil, dir, flags...)
	s.process.Await()
	require.False(tb, s.process.State().Success(), "wrenn up did not refuse:\n%s", s.Log())
	return s.Log()
}

func launch(tb testing.TB, h *Host, dir string, flags ...string) *System {
	tb.Helper()
	bin := need.File(tb, "build", Build(tb, "bin/wrenn"), "run `make build`")
	need.File(tb, "image", Build(tb, "image/templates/base/rootfs.ext4"), "run `make image`")
	knowProbes(tb, filepath.Join(dir, "agent"))
	// Ready networks come and go by themselves; without them a census knows what has to be there.
	args := append([]string{"up", "--dir", dir, "--verbose", "--ready-networks", "0", "--api-listen", "127.0.0.1:0", "--sandbox-listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0", "--boot-timeout", bootTimeout}, flags...)
	if vmm := os.Getenv("WRENN_E2E_VMM"); vmm != "" {
		args = append(args, "--vmm", vmm)
	}
	s := &System{API: API{tb: tb, host: h}, Dir: dir}
	cmd := exec.Command(bin, args...)
	require.NoError(tb, os.MkdirAll(s.temporary(), 0o700))
	cmd.Env = append(os.Environ(), "TMPDIR="+s.temporary())
	s.process = h.start(tb, "wrenn up", cmd)
	h.keepsFilesIn(dir)
	tb.Cleanup(func() { fileConsoles(tb, filepath.Join(dir, "agent")) }) // before the end takes them away
	return s
}

// up reads what `wrenn up` writes down once it serves.
func (s *System) up() bool {
	data, err := os.ReadFile(filepath.Join(s.Dir, "client.json"))
	if err != nil || json.Unmarshal(data, s) != nil {
		return false
	}
	// The file of an earlier start in the same directory may still be there.
	return s.healthy() && strings.Contains(s.Log(), s.APIURL)
}

// Stop ends it as Ctrl-C does and waits; it must end in an orderly way.
func (s *System) Stop() {
	s.tb.Helper()
	s.process.Stop()
	assert.Empty(s.tb, entries(s.tb, s.temporary()), "temporary files stayed")
}

// Kill ends it by SIGKILL, which it cannot notice.
func (s *System) Kill() {
	s.tb.Helper()
	s.process.Kill()
}

// temporary is where it makes its temporary files.
func (s *System) temporary() string { return filepath.Join(s.Dir, "tmp") }

// PID is the process's id.
func (s *System) PID() int { return s.process.PID() }

// Log is all that it has logged.
func (s *System) Log() string { return s.process.Log() }

// fileConsoles keeps what guests have printed, when the test has failed.
func fileConsoles(tb testing.TB, dir string) {
	if !tb.Failed() {
		return
	}
	found, err := filepath.Glob(filepath.Join(dir, "sandboxes/*/console.log"))
	assert.NoError(tb, err)
	for _, path := range found {
		console, err := os.ReadFile(path)
		assert.NoError(tb, err)
		Artifact(tb, "console of "+filepath.Base(filepath.Dir(path)), console)
	}
}

// Buffer collects output for readers at any time. The zero value is empty.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends p.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String is all that was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
