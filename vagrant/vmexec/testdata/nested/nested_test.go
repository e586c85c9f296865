package nested

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestAKernelBootsOnKVM boots the machine's own kernel on the machine's /dev/kvm. It has no disk, and
// says so in the end.
func TestAKernelBootsOnKVM(t *testing.T) {
	kernels, err := filepath.Glob("../../../../build/vmexec/linux-image-*/boot/vmlinuz-*")
	require.NoError(t, err)
	require.NotEmpty(t, kernels)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	start := time.Now()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "microvm,acpi=on,rtc=on", "-accel", "kvm", "-cpu", "host", "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", kernels[len(kernels)-1],
		"-append", "console=ttyS0 quiet reboot=t panic=-1").CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "Unable to mount root fs")
	t.Logf("a nested kernel reached its end in %.1f s", time.Since(start).Seconds())
}
