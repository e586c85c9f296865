package firecracker_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/firecracker"
	"wrenn/impl/firecracker/firecrackertest"
	"wrenn/impl/need"
)

// emulated is the probe's configuration for the stand-in by emulation, which works on any machine.
func emulated(t *testing.T) firecracker.ProbeConfig {
	t.Helper()
	need.Root(t)
	need.Program(t, "qemu-system-x86_64")
	return firecracker.ProbeConfig{
		Binary: firecrackertest.Build(t, "wrenn/impl/cmd/firecracker-qemu"),
		Kernel: firecrackertest.Image(t, "vmlinux"), Initramfs: firecrackertest.Image(t, "initramfs.cpio.gz"),
		CacheDir: filepath.Join(t.TempDir(), "probes"), Timeout: 90 * time.Second,
	}
}

func TestProbeBootsOnceAndRemembers(t *testing.T) {
	cfg := emulated(t)
	v, err := firecracker.Probe(t.Context(), cfg)
	require.NoError(t, err)
	require.True(t, v.OK, v.Reason)
	assert.False(t, v.Cached)
	assert.Regexp(t, `^booted Linux \d+\.`, v.Reason)

	begin := time.Now()
	again, err := firecracker.Probe(t.Context(), cfg)
	require.NoError(t, err)
	t.Logf("the first probe took %s, the second %s", v.Took, time.Since(begin))
	assert.True(t, again.Cached)
	assert.Equal(t, v.Took, again.Took)

	// Another kernel file, even of the same content, is another verdict.
	copied := filepath.Join(t.TempDir(), "initramfs")
	raw, err := os.ReadFile(cfg.Initramfs)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, raw, 0o600))
	cfg.Initramfs = copied
	fresh, err := firecracker.Probe(t.Context(), cfg)
	require.NoError(t, err)
	assert.False(t, fresh.Cached)
	assert.True(t, fresh.OK, fresh.Reason)
}

func TestProbeTellsWhatFailed(t *testing.T) {
	cfg := emulated(t)
	for name, test := range map[string]struct {
		change func(*firecracker.ProbeConfig)
		want   string
	}{
		"no vmm at all": {func(c *firecracker.ProbeConfig) { c.Binary = "/bin/false" }, "died during its start, exit code 1"},
		"no qemu":       {func(c *firecracker.ProbeConfig) { c.Env = []string{"WRENN_QEMU_BIN=/nonexistent/qemu"} }, "/nonexistent/qemu"},
		"no kernel":     {func(c *firecracker.ProbeConfig) { c.Kernel = c.Initramfs }, "linux kernel too old"},
		"too slow":      {func(c *firecracker.ProbeConfig) { c.Timeout = 300 * time.Millisecond }, "no guest booted within 300ms"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			test.change(&cfg)
			v, err := firecracker.Probe(t.Context(), cfg)
			require.NoError(t, err)
			assert.False(t, v.OK)
			assert.Contains(t, v.Reason, test.want)
			t.Log(v.Reason)
			again, err := firecracker.Probe(t.Context(), cfg)
			require.NoError(t, err)
			assert.Equal(t, v.Hung, again.Cached, "only what took the whole timeout is worth remembering")
			if again.Cached {
				assert.Equal(t, v.Reason, again.Reason)
			}
			cfg.Fresh = true
			again, err = firecracker.Probe(t.Context(), cfg)
			require.NoError(t, err)
			assert.False(t, again.Cached)
		})
	}
}

func TestProbeKeepsNothingOfAnAbandonedTry(t *testing.T) {
	cfg := emulated(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := firecracker.Probe(ctx, cfg)
	require.ErrorIs(t, err, context.Canceled)
	left, err := os.ReadDir(cfg.CacheDir)
	require.NoError(t, err)
	assert.Empty(t, left)
	cfg.Kernel = "/nonexistent"
	_, err = firecracker.Probe(t.Context(), cfg)
	require.ErrorIs(t, err, os.ErrNotExist)
}
