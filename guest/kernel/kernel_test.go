package kernel_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/guest/kernel"
	"wrenn/guest/kernel/kerneltest"
	"wrenn/impl/need"
)

func TestExtractELF(t *testing.T) {
	for _, program := range [][]string{
		{"lz4", "-l", "-c"}, {"xz", "--check=crc32", "-c"}, {"zstd", "-c"}, {"gzip", "-c"},
	} {
		t.Run(program[0], func(t *testing.T) {
			image := kerneltest.BzImage(kerneltest.Compress(t, program[0], program[1:]...))
			var out bytes.Buffer
			require.NoError(t, kernel.ExtractELF(t.Context(), image, &out))
			assert.Equal(t, kerneltest.ELF, out.Bytes())
		})
	}
}

func TestExtractELFRefuses(t *testing.T) {
	good := kerneltest.BzImage(kerneltest.Compress(t, "lz4", "-l", "-c"))
	edit := func(offset int, b ...byte) []byte {
		image := bytes.Clone(good)
		copy(image[offset:], b)
		return image
	}
	payload := 4*512 + 100
	end := payload + int(binary.LittleEndian.Uint32(good[0x24c:]))
	for _, c := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"empty", nil, "shorter than a boot header"},
		{"no bzImage", edit(0x202, 'X'), "no boot header"},
		{"old protocol", edit(0x206, 7, 2), "boot protocol 0x207"},
		{"payload outside", edit(0x24c, 0xff, 0xff, 0xff, 0xff), "outside the file"},
		{"unknown format", edit(payload, 1, 2, 3, 4), "none of lz4, xz, zstd, gzip"},
		{"wrong size", edit(end-4, 1, 0, 0, 0), "the image promises 1"},
		{"broken stream", edit(payload+4, 0xff, 0xff, 0xff, 0x7f), "decompress the kernel with lz4"},
		{"truncated", good[:payload+10], "outside the file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			assert.ErrorContains(t, kernel.ExtractELF(t.Context(), c.image, &out), c.want)
			assert.Zero(t, out.Len(), "nothing may be written on failure")
		})
	}
}

func TestExtractELFNamesTheMissingPackage(t *testing.T) {
	image := kerneltest.BzImage(kerneltest.Compress(t, "lz4", "-l", "-c"))
	t.Setenv("PATH", t.TempDir())
	err := kernel.ExtractELF(t.Context(), image, &bytes.Buffer{})
	assert.ErrorContains(t, err, "install Debian's package lz4 (make deps)")
}

func TestExtractELFOfTheBuiltImage(t *testing.T) {
	const dir = "../../build/image"
	path := need.File(t, "image", filepath.Join(dir, "vmlinuz"), "make image")
	image, err := os.ReadFile(path)
	require.NoError(t, err)
	want, err := os.ReadFile(filepath.Join(dir, "vmlinux"))
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, kernel.ExtractELF(t.Context(), image, &out))
	assert.True(t, bytes.Equal(want, out.Bytes()), "vmlinux is not what vmlinuz holds")
}

func TestResolveAndFetch(t *testing.T) {
	kerneltest.UseArchive(t)
	p, err := kernel.Resolve(t.Context(), kernel.Metapackage)
	require.NoError(t, err)
	assert.Equal(t, kernel.Package{Name: kerneltest.Name, Version: kerneltest.Version}, p)
	assert.Equal(t, kerneltest.Release, p.Release())

	cache := t.TempDir()
	dir := filepath.Join(cache, "kernel")
	require.NoError(t, p.Fetch(t.Context(), dir))
	assert.FileExists(t, p.Image(dir))
	assert.DirExists(t, p.Modules(dir))
	entries, err := os.ReadDir(cache)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "the work folder stayed")
}

func TestResolveAndFetchFail(t *testing.T) {
	kerneltest.UseArchive(t)
	_, err := kernel.Resolve(t.Context(), "linux-image-nowhere")
	assert.ErrorContains(t, err, "make deps")
	_, err = kernel.Resolve(t.Context(), kerneltest.Name)
	assert.ErrorContains(t, err, "depends on no kernel image")

	cache := t.TempDir()
	err = kernel.Package{Name: kerneltest.Name, Version: "0.0-0"}.Fetch(t.Context(), filepath.Join(cache, "kernel"))
	assert.ErrorContains(t, err, "make deps")
	entries, err := os.ReadDir(cache)
	require.NoError(t, err)
	assert.Empty(t, entries)
}
