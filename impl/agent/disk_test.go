package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
)

// TestA07_LifecycleOnRealDisks runs the domain's suite with real disks under machines in memory, which write to
// them.
func TestA07_LifecycleOnRealDisks(t *testing.T) {
	for _, mode := range []rootfs.Mode{rootfs.ModeCopy, rootfs.ModeSnapshot} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == rootfs.ModeSnapshot {
				need.DeviceMapper(t)
			}
			sandboxtest.Lifecycle(t, func(t *testing.T) sandboxtest.Ground { return diskGround(t, mode) })
		})
	}
}

func diskGround(t *testing.T, mode rootfs.Mode) sandboxtest.Ground {
	dir := shortDir(t)
	base := filepath.Join(dir, "image", "templates", "base")
	require.NoError(t, os.MkdirAll(base, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(base, "template.json"), []byte(`{"name":"base","vcpus":1,"memoryMib":256,"diskMib":16}`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(base, "rootfs.ext4"), nil, 0o600))
	require.NoError(t, os.Truncate(filepath.Join(base, "rootfs.ext4"), 16<<20))
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	part := &diskPart{}
	var store *rootfs.Store
	restart := func() { // a Store knows what its life has made
		if store != nil {
			require.NoError(t, store.Close())
		}
		var err error
		store, err = rootfs.NewStore(rootfs.Config{ImageDir: filepath.Join(dir, "image"), Dir: filepath.Join(dir, "disks"), Mode: mode, Logger: logger})
		require.NoError(t, err)
		*part = newDiskPart(Config{ImageDir: filepath.Join(dir, "image")}, store)
	}
	restart()
	t.Cleanup(func() { assert.NoError(t, store.Close()) })
	h := sandboxtest.NewHost()
	g := h.Ground(sandbox.Config{
		Dir: filepath.Join(dir, "sandboxes"), Logger: logger, MemoryMiB: 8192,
		Network: h.Network(), Disk: part, Memory: h.Memory(), VMM: h.VMM(), Guest: h.Guest(),
	})
	g.Restart = func() { h.Restart(); restart() }
	census := g.Census
	g.Census = func(t *testing.T) []string {
		found, err := filepath.Glob("/dev/mapper/wrenn*")
		require.NoError(t, err)
		return append(census(t), found...)
	}
	return g
}
