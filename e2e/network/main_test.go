// Package network_test drives whole agents through what happens to networks: leftovers of a crash, a host
// that is full, and the commands that show and clear what there is.
package network_test

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/need"
)

func TestMain(m *testing.M) { harness.MainOnOwnHost(m) }

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
