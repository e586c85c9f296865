package initramfs_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/guest/initramfs"
	"wrenn/guest/kernel/kerneltest"
	"wrenn/impl/need"
)

// modulesDir makes a kernel's modules folder of file -> dependencies.
func modulesDir(t *testing.T, modules map[string]string, builtin string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644))
	for name, depends := range modules {
		path := filepath.Join(dir, "kernel", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, kerneltest.Module(depends), 0o644))
	}
	return dir
}

func names(modules []initramfs.Module) []string {
	var n []string
	for _, m := range modules {
		n = append(n, m.Name)
	}
	return n
}

func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	modules, err := initramfs.Modules(t.Context(), modulesDir(t, kerneltest.Modules, ""), initramfs.Wanted)
	require.NoError(t, err)
	assert.Equal(t, []string{
		"virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net", "virtio_rng", "inet_diag", "tcp_diag",
	}, names(modules))
}

func TestModulesLeavesOutBuiltIns(t *testing.T) {
	files := maps.Clone(kerneltest.Modules)
	delete(files, "drivers/virtio/virtio_ring.ko")
	delete(files, "drivers/char/hw_random/virtio-rng.ko")
	dir := modulesDir(t, files, "kernel/drivers/virtio/virtio_ring.ko\nkernel/drivers/char/hw_random/virtio-rng.ko\n")
	modules, err := initramfs.Modules(t.Context(), dir, initramfs.Wanted)
	require.NoError(t, err)
	assert.False(t, slices.Contains(names(modules), "virtio_ring"))
	assert.False(t, slices.Contains(names(modules), "virtio_rng"))
	assert.Len(t, modules, 8)
}

func TestModulesReadsCompressedFiles(t *testing.T) {
	need.Program(t, "xz")
	dir := modulesDir(t, map[string]string{"a.ko": "b-c", "b-c.ko": ""}, "")
	for _, f := range []string{"a.ko", "b-c.ko"} {
		out, err := exec.Command("xz", filepath.Join(dir, "kernel", f)).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	modules, err := initramfs.Modules(t.Context(), dir, []string{"a"})
	require.NoError(t, err)
	assert.Equal(t, []string{"b_c", "a"}, names(modules))
	assert.Equal(t, kerneltest.Module("b-c"), modules[1].Data)
}

func TestModulesFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		modules map[string]string
		want    string
	}{
		{"missing", map[string]string{"a.ko": "gone"}, "kernel module gone is neither built in"},
		{"cycle", map[string]string{"a.ko": "b", "b.ko": "a"}, "kernel module a depends on itself"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := initramfs.Modules(t.Context(), modulesDir(t, c.modules, ""), []string{"a"})
			assert.ErrorContains(t, err, c.want)
		})
	}
	dir := modulesDir(t, nil, "")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "kernel"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel/a.ko"), []byte("no ELF"), 0o644))
	_, err := initramfs.Modules(t.Context(), dir, []string{"a"})
	assert.ErrorContains(t, err, "dependencies of kernel module a")
}

func TestWriteReadsBackAndIsReproducible(t *testing.T) {
	modules := []initramfs.Module{{Name: "virtio_ring", Data: []byte("ring")}, {Name: "virtio", Data: []byte("virtio!")}}
	var first, second bytes.Buffer
	require.NoError(t, initramfs.Write(&first, []byte("the init"), modules))
	require.NoError(t, initramfs.Write(&second, []byte("the init"), modules))
	assert.Equal(t, first.Bytes(), second.Bytes())

	got := map[string]string{}
	for r := cpio.NewReader(&first); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		got[h.Name] = h.Mode.String() + " " + string(data)
		assert.EqualValues(t, 1, h.ModTime.Unix(), h.Name)
	}
	assert.Equal(t, map[string]string{
		"dev": "040755 ", "proc": "040755 ", "sys": "040755 ", "newroot": "040755 ", "modules": "040755 ",
		"dev/null": "0100666 ", "init": "0100755 the init",
		"modules/00-virtio_ring.ko": "0100644 ring",
		"modules/01-virtio.ko":      "0100644 virtio!",
	}, got)
}
