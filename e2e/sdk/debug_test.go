// Package sdk drives the released E2B SDK for JavaScript, pinned, against Wrenn.
package sdk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// debugPort is the one port that the SDK's debug mode knows.
const debugPort = 49983

// TestDebugMode runs debug.test.mjs against an envd of its own on debugPort.
func TestDebugMode(t *testing.T) {
	need.Program(t, "git", "bash")
	sdk := needSDK(t)
	home := startEnvd(t)
	sdk.file("debug.test.mjs", 5*time.Minute, "E2B_DEBUG=true", "WRENN_TEST_HOME="+home)
}

// startEnvd builds and starts envd and returns the home that its programs and paths start in.
func startEnvd(t *testing.T) string {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", debugPort)
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err, "the SDK's debug mode needs port %d, which is held by:\n%s", debugPort, holder(t))
	require.NoError(t, l.Close())

	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	bin, home := filepath.Join(dir, "envd"), filepath.Join(dir, "home")
	require.NoError(t, os.Mkdir(home, 0o755))
	out, err := exec.Command("go", "build", "-o", bin, "wrenn/impl/cmd/envd").CombinedOutput()
	require.NoError(t, err, "build envd: %s", out)

	var log bytes.Buffer
	daemon := exec.Command(bin, "--addr", "127.0.0.1")
	daemon.Stdout, daemon.Stderr = &log, &log
	require.NoError(t, daemon.Start())
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		err := daemon.Wait()
		if t.Failed() {
			t.Logf("envd's log:\n%s", log.String())
		}
		require.NoError(t, err, "envd ends cleanly")
	})
	initEnvd(t, "http://"+addr, home)
	return home
}

// initEnvd waits for envd and makes home the place where its programs and relative paths start.
func initEnvd(t *testing.T, base, home string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"defaultWorkdir": home,
		"envVars":        map[string]string{"HOME": home, "GIT_CONFIG_NOSYSTEM": "1"},
	})
	require.NoError(t, err)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	require.Eventually(t, func() bool {
		res, err := client.Post(base+"/init", "application/json", bytes.NewReader(body))
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusNoContent
	}, 30*time.Second, 20*time.Millisecond, "envd answers")
}

// holder names the process that listens on envd's port, as far as this machine can tell.
func holder(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("ss", "-Hltnp", fmt.Sprintf("sport = :%d", debugPort)).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("(ss: %v)", err)
	}
	return string(out)
}
