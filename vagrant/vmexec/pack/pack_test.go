package pack_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
	"wrenn/vagrant/vmexec/pack"
)

// unpacked is an archive as a map from path to what is there: "folder", "-> TARGET" or the content.
func unpacked(t *testing.T, tree *pack.Tree) map[string]string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, tree.Write(&b))
	files := map[string]string{}
	for r := cpio.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		parent := filepath.Dir("/" + h.Name)
		require.True(t, parent == "/" || files[parent] == "folder", "%s comes before its folder", h.Name)
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		switch h.Mode & cpio.ModeType {
		case cpio.TypeDir:
			files["/"+h.Name] = "folder"
		case cpio.TypeSymlink:
			files["/"+h.Name] = "-> " + h.Linkname + string(content)
		default:
			files["/"+h.Name] = string(content)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o755))
}

func TestLinksAreKeptAndFollowed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/real/deep/file", "content")
	require.NoError(t, os.Symlink("real", dir+"/relative"))
	require.NoError(t, os.Symlink(dir+"/relative/deep", dir+"/absolute"))
	require.NoError(t, os.Symlink("../relative/deep/file", dir+"/real/up"))
	tree := pack.NewTree()
	require.NoError(t, tree.Add(dir+"/real/up"))
	require.NoError(t, tree.Add(dir+"/absolute/file"))
	files := unpacked(t, tree)
	assert.Equal(t, "-> "+dir+"/relative/deep", files[dir+"/absolute"])
	assert.Equal(t, "-> real", files[dir+"/relative"])
	assert.Equal(t, "-> ../relative/deep/file", files[dir+"/real/up"])
	assert.Equal(t, "content", files[dir+"/real/deep/file"])
	assert.Equal(t, "folder", files["/tmp"])
}

func TestFoldersAreAddedWhole(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/in/a", "a")
	write(t, dir+"/in/b/c", "c")
	require.NoError(t, os.Mkdir(dir+"/in/empty", 0o755))
	require.NoError(t, os.Symlink("nowhere", dir+"/in/dangling"))
	require.NoError(t, os.Symlink("../out", dir+"/in/link"))
	write(t, dir+"/out", "out")
	write(t, dir+"/not", "not")
	tree := pack.NewTree()
	require.NoError(t, tree.Add(dir+"/in"))
	files := unpacked(t, tree)
	assert.Equal(t, "a", files[dir+"/in/a"])
	assert.Equal(t, "c", files[dir+"/in/b/c"])
	assert.Equal(t, "folder", files[dir+"/in/empty"])
	assert.Equal(t, "-> nowhere", files[dir+"/in/dangling"])
	assert.Equal(t, "out", files[dir+"/out"], "what a link points to")
	assert.NotContains(t, files, dir+"/not")
}

func TestWhatCannotBeAdded(t *testing.T) {
	dir := t.TempDir()
	tree := pack.NewTree()
	require.ErrorIs(t, tree.Add(dir+"/missing"), os.ErrNotExist)
	require.NoError(t, os.Symlink("b", dir+"/a"))
	require.NoError(t, os.Symlink("a", dir+"/b"))
	require.ErrorContains(t, tree.Add(dir+"/a"), "more than 40 symbolic links")
	write(t, dir+"/script", "#!/no/such/interpreter -x\n")
	require.ErrorContains(t, tree.AddProgram(dir+"/script"), "/no/such/interpreter")
	require.Error(t, tree.AddProgram("no-such-program"))
}

// TestAProgramRunsFromItsTreeAlone proves the closure of libraries and interpreters: the programs are
// run with the unpacked tree as their root.
func TestAProgramRunsFromItsTreeAlone(t *testing.T) {
	need.Root(t)
	need.Program(t, "chroot", "ip", "bash")
	dir := t.TempDir()
	write(t, dir+"/direct", "#!/bin/bash\necho direct\n")
	write(t, dir+"/env", "#!/usr/bin/env -S bash -u\necho env\n")
	tree := pack.NewTree()
	for _, p := range []string{"ip", dir + "/direct", dir + "/env"} {
		require.NoError(t, tree.AddProgram(p))
	}
	root := t.TempDir()
	files := unpacked(t, tree)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		content, at := files[path], root+path
		if target, found := strings.CutPrefix(content, "-> "); found {
			require.NoError(t, os.Symlink(target, at))
		} else if content == "folder" {
			require.NoError(t, os.Mkdir(at, 0o755))
		} else {
			require.NoError(t, os.WriteFile(at, []byte(content), 0o755))
		}
	}
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{"ip", "-V"}, "ip utility"}, // whose libraries have libraries
		{[]string{dir + "/direct"}, "direct\n"},
		{[]string{dir + "/env"}, "env\n"},
	} {
		out, err := exec.CommandContext(t.Context(), "chroot", append([]string{root}, c.argv...)...).CombinedOutput()
		assert.NoError(t, err, "%v: %s", c.argv, out)
		assert.Contains(t, string(out), c.want)
	}
}

func TestAsk(t *testing.T) {
	a := pack.Ask{Memory: 2048, CPUs: 2}
	require.NoError(t, a.ReadAsk(strings.NewReader(`
		# all of it
		program node # with a reason
		program /opt/x
		module nbd
		file ../data/*.json
		file /etc/ssl
		without firecracker
		memory 512
		memory 4096
		cpus 1`), "/pkg/here"))
	assert.Equal(t, pack.Ask{
		Programs: []string{"node", "/opt/x"}, Modules: []string{"nbd"}, Files: []string{"/pkg/data/*.json", "/etc/ssl"},
		Without: []string{"firecracker"}, Memory: 4096, CPUs: 1,
	}, a)
	for line, want := range map[string]string{
		"colour blue":   `line 1: "colour" is none of`,
		"\nprogram":     `line 2: "program" is not KEY VALUE`,
		"program a b":   "is not KEY VALUE",
		"memory 255":    "memory: ",
		"memory 65537":  "from 256 to 65536",
		"cpus 0":        "cpus: ",
		"cpus 65":       "cpus: ",
		"memory plenty": `"plenty" is not a number`,
	} {
		assert.ErrorContains(t, new(pack.Ask).ReadAsk(strings.NewReader(line), "/"), want, line)
	}
}
