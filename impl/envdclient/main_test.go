package envdclient

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// deadline is far beyond what anything here takes on an idle machine.
const deadline = 30 * time.Second

// envd is the daemon, built once for all tests: the client is tested against the real one.
var envd string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "envdclient-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	envd = filepath.Join(dir, "envd")
	if out, err := exec.Command("go", "build", "-o", envd, "wrenn/impl/cmd/envd").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build envd: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// freePort finds a port that nobody has at the moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

// startDaemon runs envd on port until the test ends.
func startDaemon(t *testing.T, port string) {
	t.Helper()
	var log strings.Builder
	cmd := exec.Command(envd, "--addr", "127.0.0.1", "--port", port)
	cmd.Env = append(os.Environ(), "WRENN_INIT_SECONDS=1.5")
	cmd.Stderr = &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		assert.NoError(t, cmd.Wait(), "envd: %s", &log)
	})
}

func newClient(t *testing.T, port string, change func(*Config)) *Client {
	t.Helper()
	transport := &http.Transport{ExpectContinueTimeout: time.Second}
	c := Config{BaseURL: "http://127.0.0.1:" + port, HTTPClient: &http.Client{Transport: transport}}
	if change != nil {
		change(&c)
	}
	client, err := New(c)
	require.NoError(t, err)
	t.Cleanup(client.CloseIdle)
	return client
}

// ready is a client of a daemon of the test's own.
func ready(t *testing.T, r InitRequest) *Client {
	t.Helper()
	port := freePort(t)
	startDaemon(t, port)
	c := newClient(t, port, nil)
	_, err := c.InitWhenReady(t.Context(), r)
	require.NoError(t, err)
	return c
}
