// Package harness starts Wrenn as real processes for the end-to-end suites, waits on conditions with
// deadlines, and counts what exists on the host before and after.
package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/apiclient"
	"wrenn/impl/envdclient"
	"wrenn/impl/need"
	"wrenn/impl/transport"
)

// Patience bounds each wait for something that takes seconds at most on an idle machine: a cold boot by
// emulation, a start with a probe of every VMM, a stop that ends several sandboxes.
const Patience = 2 * time.Minute

// envdPort is where the daemon in a guest answers.
const envdPort = 49983

// Root is the directory of go.mod.
func Root(tb testing.TB) string {
	tb.Helper()
	dir, err := moduleRoot()
	require.NoError(tb, err)
	return dir
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
	APIURL     string `json:"apiUrl"`
	SandboxURL string `json:"sandboxUrl"`
	APIKey     string `json:"apiKey"`
	// Dir is its data directory.
	Dir string
	// Client calls its API.
	Client *apiclient.Client

	tb   testing.TB
	cmd  *exec.Cmd
	log  *Buffer
	done chan struct{}
	rpc  *http.Transport
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

// probes keeps the verdicts of the first probe of the VMMs for the later starts of this test binary.
var probes = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "wrenn-e2e-probes-") })

// Start starts `wrenn up` in dir with further flags, on free ports, and waits until it serves. Its log is
// printed when the test fails. The test ends it by Stop or Kill; what is left at its end is killed.
func Start(tb testing.TB, dir string, flags ...string) *System {
	tb.Helper()
	need.Root(tb)
	s := launch(tb, dir, flags...)
	deadline := time.Now().Add(Patience)
	for !s.up() {
		select {
		case <-s.done:
			require.FailNow(tb, "wrenn up ended at its start", "%s", s.log)
		case <-time.After(20 * time.Millisecond):
		}
		require.True(tb, time.Now().Before(deadline), "wrenn up does not serve after %v:\n%s", Patience, s.log)
	}
	s.rpc = transport.NewRPCTransport()
	s.Client = apiclient.New(s.APIURL, s.APIKey, s.rpc)
	return s
}

// StartFails starts `wrenn up` where it must refuse, and returns what it logged.
func StartFails(tb testing.TB, dir string, flags ...string) string {
	tb.Helper()
	need.Root(tb)
	s := launch(tb, dir, flags...)
	select {
	case <-s.done:
	case <-time.After(Patience):
		require.FailNow(tb, "wrenn up does not end", "%s", s.log)
	}
	require.False(tb, s.cmd.ProcessState.Success(), "wrenn up did not refuse:\n%s", s.log)
	return s.log.String()
}

func launch(tb testing.TB, dir string, flags ...string) *System {
	tb.Helper()
	root := Root(tb)
	bin := need.File(tb, "build", filepath.Join(root, "build/bin/wrenn"), "run `make build`")
	need.File(tb, "image", filepath.Join(root, "build/image/templates/base/rootfs.ext4"), "run `make image`")
	cache, err := probes()
	require.NoError(tb, err)
	require.NoError(tb, os.MkdirAll(filepath.Join(dir, "agent"), 0o700))
	link := filepath.Join(dir, "agent", "probes")
	require.NoError(tb, os.RemoveAll(link))
	require.NoError(tb, os.Symlink(cache, link))

	// Ready networks come and go by themselves; without them a census knows what has to be there.
	args := append([]string{"up", "--dir", dir, "--verbose", "--ready-networks", "0", "--api-listen", "127.0.0.1:0", "--sandbox-listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0"}, flags...)
	if vmm := os.Getenv("WRENN_E2E_VMM"); vmm != "" {
		args = append(args, "--vmm", vmm)
	}
	s := &System{Dir: dir, tb: tb, log: &Buffer{}, done: make(chan struct{})}
	s.cmd = exec.Command(bin, args...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	require.NoError(tb, os.MkdirAll(s.temporary(), 0o700))
	s.cmd.Env = append(os.Environ(), "TMPDIR="+s.temporary())
	require.NoError(tb, s.cmd.Start())
	go func() {
		_ = s.cmd.Wait() // how it ended is in ProcessState
		close(s.done)
	}()
	tb.Cleanup(s.cleanup)
	return s
}

// up reads what `wrenn up` writes down once it serves.
func (s *System) up() bool {
	data, err := os.ReadFile(filepath.Join(s.Dir, "client.json"))
	if err != nil || json.Unmarshal(data, s) != nil {
		return false
	}
	// The file of an earlier start in the same directory may still be there.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	rt := transport.NewRPCTransport()
	defer rt.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.APIURL+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := rt.RoundTrip(req)
	return err == nil && resp.Body.Close() == nil && strings.Contains(s.log.String(), s.APIURL)
}

// Stop ends it as Ctrl-C does and waits; it must end in an orderly way.
func (s *System) Stop() {
	s.tb.Helper()
	require.NoError(s.tb, s.cmd.Process.Signal(os.Interrupt))
	select {
	case <-s.done:
	case <-time.After(Patience):
		require.FailNow(s.tb, "wrenn up does not end", "%s", s.log)
	}
	require.True(s.tb, s.cmd.ProcessState.Success(), "wrenn up: %v\n%s", s.cmd.ProcessState, s.log)
	assert.Empty(s.tb, entries(s.tb, s.temporary()), "temporary files stayed")
}

// Kill ends it by SIGKILL, which it cannot notice.
func (s *System) Kill() {
	s.tb.Helper()
	require.NoError(s.tb, s.cmd.Process.Signal(syscall.SIGKILL))
	<-s.done
}

// temporary is where it makes its temporary files.
func (s *System) temporary() string { return filepath.Join(s.Dir, "tmp") }

// Log is all that it has logged.
func (s *System) Log() string { return s.log.String() }

func (s *System) cleanup() {
	if s.rpc != nil {
		s.rpc.CloseIdleConnections()
	}
	select {
	case <-s.done:
	default:
		_ = s.cmd.Process.Signal(os.Interrupt)
		select {
		case <-s.done:
		case <-time.After(Patience):
			_ = s.cmd.Process.Kill()
			<-s.done
		}
	}
	if s.tb.Failed() {
		s.tb.Logf("log of wrenn up:\n%s", s.log)
		for _, path := range s.consoles() {
			console, err := os.ReadFile(path)
			s.tb.Logf("%s (%v):\n%s", path, err, console)
		}
	}
}

func (s *System) consoles() []string {
	found, err := filepath.Glob(filepath.Join(s.Dir, "agent/sandboxes/*/console.log"))
	if err != nil {
		return nil
	}
	return found
}

// Create makes a sandbox from the template base with an hour to live.
func (s *System) Create() apiclient.Sandbox {
	s.tb.Helper()
	return s.CreateWith(apiclient.CreateRequest{TemplateID: "base", Timeout: 3600})
}

// CreateWith makes a sandbox.
func (s *System) CreateWith(req apiclient.CreateRequest) apiclient.Sandbox {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	sandbox, err := s.Client.Create(ctx, req)
	require.NoError(s.tb, err)
	return sandbox
}

// Guest returns a client of a sandbox's daemon, through the sandbox proxy.
func (s *System) Guest(sandbox apiclient.Sandbox) *envdclient.Client {
	s.tb.Helper()
	header := http.Header{}
	header.Set("E2b-Sandbox-Id", sandbox.SandboxID)
	header.Set("E2b-Sandbox-Port", strconv.Itoa(envdPort))
	rt := transport.NewStreamTransport()
	s.tb.Cleanup(rt.CloseIdleConnections)
	c, err := envdclient.New(envdclient.Config{
		BaseURL: s.SandboxURL, HTTPClient: &http.Client{Transport: rt}, Headers: header, AccessToken: sandbox.EnvdAccessToken,
	})
	require.NoError(s.tb, err)
	return c
}

// Exec runs a program in a sandbox and returns what it printed; it must succeed.
func (s *System) Exec(sandbox apiclient.Sandbox, cmd string, args ...string) string {
	s.tb.Helper()
	out, err := s.TryExec(sandbox, cmd, args...)
	require.NoError(s.tb, err)
	return out
}

// TryExec runs a program in a sandbox and returns what it printed.
func (s *System) TryExec(sandbox apiclient.Sandbox, cmd string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var out, stderr bytes.Buffer
	exit, err := s.Guest(sandbox).Exec(ctx, envdclient.ExecRequest{Cmd: cmd, Args: args, Stdout: &out, Stderr: &stderr})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%s: %s: %s", cmd, exit.Status, stderr.Bytes())
	}
	return out.String(), err
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
