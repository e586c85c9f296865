package rootfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func write(t *testing.T, path, content string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

func debugfs(t *testing.T, image, command string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", command, image).Output()
	require.NoError(t, err)
	return string(out)
}

func TestWriteImage(t *testing.T) {
	need.Program(t, "mkfs.ext4", "e2fsck", "debugfs")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	write(t, filepath.Join(tree, "etc/hello"), "hello")
	write(t, filepath.Join(tree, "usr/bin/envd"), "an older envd")
	envd := write(t, filepath.Join(dir, "envd"), "the envd")
	image := filepath.Join(dir, "out", "rootfs.ext4")
	require.NoError(t, os.Mkdir(filepath.Dir(image), 0o755))
	require.NoError(t, WriteImage(t.Context(), tree, envd, image, "some key", 512))

	out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "hello", debugfs(t, image, "cat /etc/hello"))
	assert.Equal(t, "the envd", debugfs(t, image, "cat "+EnvdPath))
	assert.Contains(t, debugfs(t, image, "stat "+EnvdPath), "Mode:  0755")
	stats := debugfs(t, image, "stats -h")
	assert.Contains(t, stats, "Reserved block count:     0")
	assert.Contains(t, stats, uuid("fs", "some key"))
	assert.Contains(t, debugfs(t, image, "stat <8>"), "Size: 8388608", "the journal's inode")

	info, err := os.Stat(image)
	require.NoError(t, err)
	assert.EqualValues(t, 512<<20, info.Size())
	allocated := info.Sys().(*syscall.Stat_t).Blocks * 512
	assert.Less(t, allocated, int64(4<<20), "an almost empty image must be almost all hole")

	old, err := os.ReadFile(filepath.Join(tree, "usr/bin/envd"))
	require.NoError(t, err)
	assert.Equal(t, "an older envd", string(old), "the staged system must stay as it was")
	entries, err := os.ReadDir(filepath.Dir(image))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "the work folder stayed")
}

func TestWriteImageFailsCleanly(t *testing.T) {
	need.Program(t, "mkfs.ext4")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	write(t, filepath.Join(tree, "usr/bin/big"), strings.Repeat("x", 3<<20))
	envd := write(t, filepath.Join(dir, "envd"), "the envd")
	out := filepath.Join(dir, "out")
	require.NoError(t, os.Mkdir(out, 0o755))
	image := filepath.Join(out, "rootfs.ext4")

	assert.ErrorContains(t, WriteImage(t.Context(), tree, filepath.Join(dir, "none"), image, "k", 512), "read envd")
	assert.ErrorContains(t, WriteImage(t.Context(), tree, envd, image, "k", 1), "mkfs.ext4")
	t.Setenv("PATH", t.TempDir())
	assert.ErrorContains(t, WriteImage(t.Context(), tree, envd, image, "k", 512), "install Debian's package coreutils")
	entries, err := os.ReadDir(out)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestBootstrapArgs(t *testing.T) {
	bare := Recipe{Dir: recipeDir(t, nil), Packages: []string{"bash", "curl"}}
	args := bootstrapArgs(bare, "/out.tar")
	assert.Equal(t, []string{"--include=bash,curl", "bookworm", "/out.tar"}, args[len(args)-3:])
	assert.Equal(t, "--mode=unshare", args[0])
	assert.NotContains(t, strings.Join(args, " "), "hook")

	full := Recipe{Dir: recipeDir(t, map[string]string{"setup.sh": "", "overlay/a": ""})}
	hooks := strings.Join(bootstrapArgs(full, ""), "\n")
	assert.Contains(t, hooks, "--customize-hook=cp -dR '"+full.Dir+"/overlay'")
	assert.Contains(t, hooks, "--customize-hook=install -m 0755 '"+full.Dir+"/setup.sh'")
	assert.Less(t, strings.Index(hooks, "overlay"), strings.Index(hooks, "setup.sh"), "the set-up sees the overlay")
	assert.Equal(t, `'it'\''s'`, quote("it's"))
}

func TestAnonymize(t *testing.T) {
	tree := t.TempDir()
	for _, name := range []string{
		"etc/ssh/ssh_host_rsa_key", "var/lib/systemd/random-seed", "var/log/dpkg.log", "etc/shadow-",
	} {
		write(t, filepath.Join(tree, name), "secret")
	}
	kept := write(t, filepath.Join(tree, "etc/shadow"), "kept")
	write(t, filepath.Join(tree, "etc/machine-id"), "of the builder")
	require.NoError(t, os.Symlink("/run/resolv.conf", filepath.Join(tree, "etc/resolv.conf")))
	require.NoError(t, anonymize(tree))

	assert.FileExists(t, kept)
	for _, name := range []string{
		"etc/ssh/ssh_host_rsa_key", "var/lib/systemd/random-seed", "var/log/dpkg.log", "etc/shadow-",
	} {
		assert.NoFileExists(t, filepath.Join(tree, name))
	}
	for name, want := range identity {
		info, err := os.Lstat(filepath.Join(tree, name))
		require.NoError(t, err)
		assert.True(t, info.Mode().IsRegular(), name)
		got, err := os.ReadFile(filepath.Join(tree, name))
		require.NoError(t, err)
		assert.Equal(t, want, string(got))
	}
}

func TestStageNamesTheMissingPackage(t *testing.T) {
	need.Root(t)
	r := Recipe{Name: "demo", Dir: recipeDir(t, nil)}
	cache := t.TempDir()
	t.Setenv("PATH", t.TempDir())
	_, err := Key(t.Context(), r)
	assert.ErrorContains(t, err, "install Debian's package mmdebstrap (make deps)")
	err = Stage(t.Context(), r, filepath.Join(cache, "system"))
	assert.ErrorContains(t, err, "install Debian's package mmdebstrap (make deps)")
	entries, err := os.ReadDir(cache)
	require.NoError(t, err)
	assert.Empty(t, entries)
}
