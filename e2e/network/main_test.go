// Package network_test drives whole agents through what happens to networks: leftovers of a crash, a host
// that is full, and the commands that show and clear what there is.
package network_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"wrenn/e2e/harness"
	"wrenn/impl/need"
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

// start starts `wrenn up` with guests that are up in tens of milliseconds.
func start(t *testing.T, dir string, flags ...string) *harness.System {
	t.Helper()
	need.Root(t)
	need.Program(t, "iptables", "iptables-save", "ip", "unshare")
	need.File(t, "kvm", "/dev/kvm", "the agent looks for it before it tries a Firecracker")
	t.Setenv("WRENN_E2E_VMM", "firecracker")
	return harness.Start(t, dir, append([]string{"--firecracker", harness.Procvmm(t)}, flags...)...)
}

// shell runs a script for the set-up of a test.
func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s: %s", script, out)
	return string(out)
}
