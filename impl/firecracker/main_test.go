package firecracker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// The test binary plays the VMM in tests of the launcher: what it does is named by this variable.
const playVMM = "WRENN_TEST_VMM"

// patience is how long anything may take that is over in milliseconds on an idle machine.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if role := os.Getenv(playVMM); role != "" {
		os.Exit(play(role, os.Args))
	}
	goleak.VerifyTestMain(m)
}

func play(role string, args []string) int {
	fmt.Println("playing", role)
	switch role {
	case "dies":
		fmt.Fprintln(os.Stderr, "no such kernel, no such luck")
		return 7
	case "deaf":
		time.Sleep(time.Hour)
	case "parent":
		child := exec.Command("sleep", "3600")
		if err := child.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("child", child.Process.Pid)
	}
	var socket string
	for i, a := range args {
		if a == "--api-sock" {
			socket = args[i+1]
		}
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go func() { _ = http.Serve(l, http.NotFoundHandler()) }() // until the process ends
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
	return 3
}

// shortDir is a directory whose path leaves room for a socket's name, as t.TempDir's need not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fcl") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// launchPlayer starts the test binary in the place of a VMM.
func launchPlayer(ctx context.Context, t *testing.T, role string) (*Process, LaunchConfig, error) {
	t.Helper()
	dir := shortDir(t)
	self, err := os.Executable()
	require.NoError(t, err)
	cfg := LaunchConfig{Binary: self, ID: "player", SocketPath: filepath.Join(dir, "s"),
		ConsolePath: filepath.Join(dir, "console"), Env: []string{playVMM + "=" + role}, ReadyTimeout: patience}
	if role == "deaf" {
		cfg.ReadyTimeout = 500 * time.Millisecond
	}
	p, err := Launch(ctx, cfg)
	if p != nil {
		t.Cleanup(func() { assert.NoError(t, p.Kill(context.WithoutCancel(t.Context()))) })
	}
	return p, cfg, err
}

func awaitDone(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		require.FailNow(t, "the end of the process was not noticed")
	}
}

// openFiles counts the process's descriptors, to find leaks.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}
