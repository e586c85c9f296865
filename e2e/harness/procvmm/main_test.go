package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"wrenn/e2e/harness"
	"wrenn/impl/netns/netnstest"
)

// TestMain gives the tests a host of their own, with nothing but lo, and lets no other suite that runs an
// agent run beside them.
func TestMain(m *testing.M) {
	netnstest.Isolate()
	if lo, err := netlink.LinkByName("lo"); err == nil && os.Geteuid() == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			fmt.Fprintln(os.Stderr, "raise lo:", err)
			os.Exit(1)
		}
	}
	harness.Main(m)
}

// built compiles the program once per run of the tests.
var built = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs("../../../build/test/procvmm")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
})

func program(tb testing.TB) string {
	tb.Helper()
	path, err := built()
	require.NoError(tb, err)
	return path
}
