package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"wrenn/guest/kernel/kerneltest"
	"wrenn/guest/rootfs"
	"wrenn/impl/need"
)

// workshop is a whole build that needs no network: the kernel comes from an archive on this machine,
// and the recipe's system, which mmdebstrap would make, lies in the cache already.
type workshop struct {
	Config
	progress bytes.Buffer
}

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	need.Program(t, "mmdebstrap", "mkfs.ext4")
	kerneltest.UseArchive(t)
	dir := t.TempDir()
	w := &workshop{}
	w.Config = Config{Out: filepath.Join(dir, "out"), Templates: filepath.Join(dir, "templates"), Progress: &w.progress}
	w.Envd = w.writeEnvd(t, "envd", "1.2.3")
	w.write(t, "templates/demo/packages", "bash\n")
	w.setMemory(t, "512")
	r, err := rootfs.LoadRecipe(filepath.Join(w.Templates, "demo"))
	require.NoError(t, err)
	key, err := rootfs.Key(t.Context(), r)
	require.NoError(t, err)
	w.write(t, "out/cache/system-demo-"+key[:keyLength]+"/usr/bin/sh", "a shell")
	return w
}

func (w *workshop) write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(w.Out), name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o755))
	return path
}

func (w *workshop) writeEnvd(t *testing.T, name, version string) string {
	t.Helper()
	return w.write(t, name, "#!/bin/sh\necho envd version "+version+"\n")
}

func (w *workshop) setMemory(t *testing.T, mib string) {
	t.Helper()
	w.write(t, "templates/demo/recipe.json", `{"vcpus": 1, "memoryMib": `+mib+`, "diskMib": 512}`)
}

// build runs a build and returns its report and the names of the stages that were not reused.
func (w *workshop) build(t *testing.T) (Report, []string) {
	t.Helper()
	r, err := Build(t.Context(), w.Config)
	require.NoError(t, err)
	var made []string
	for _, s := range r.Stages {
		if !s.Reused {
			made = append(made, s.Name)
		}
	}
	return r, made
}

func (w *workshop) template(t *testing.T) Template {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Out, "templates/demo/template.json"))
	require.NoError(t, err)
	var got Template
	require.NoError(t, json.Unmarshal(b, &got))
	return got
}

func TestBuildMakesOnlyWhatChanged(t *testing.T) {
	w := newWorkshop(t)
	report, made := w.build(t)
	assert.Equal(t, []string{"kernel package", "kernel ELF", "initramfs", "template demo disk"}, made)
	assert.Equal(t, kerneltest.Release, report.Kernel)
	assert.Equal(t, "1.2.3", report.Envd)
	var files []string
	for _, f := range report.Files {
		files = append(files, f.Path)
		assert.Positive(t, f.Allocated, f.Path)
	}
	assert.Equal(t, []string{"initramfs.cpio.gz", "templates/demo/rootfs.ext4", "vmlinux", "vmlinuz"}, files)
	assert.Less(t, report.Files[1].Allocated, report.Files[1].Size/50, "allocated blocks, not apparent size")
	elf, err := os.ReadFile(filepath.Join(w.Out, "vmlinux"))
	require.NoError(t, err)
	assert.Equal(t, kerneltest.ELF, elf)
	first := w.template(t)
	assert.Equal(t, Template{
		Name: "demo", VCPUs: 1, MemoryMiB: 512, DiskMiB: 512, EnvdVersion: "1.2.3",
		KernelVersion: kerneltest.Release, ContentHash: first.ContentHash, BuiltAt: first.BuiltAt,
	}, first)

	_, made = w.build(t)
	assert.Empty(t, made, "the second run reuses everything")
	assert.Equal(t, first, w.template(t))

	w.setMemory(t, "1024")
	_, made = w.build(t)
	assert.Empty(t, made, "a number changes the description alone")
	assert.Equal(t, 1024, w.template(t).MemoryMiB)

	w.Envd = w.writeEnvd(t, "envd2", "1.2.4")
	_, made = w.build(t)
	assert.Equal(t, []string{"template demo disk"}, made, "a new envd keeps the system")
	assert.Equal(t, "1.2.4", w.template(t).EnvdVersion)
	assert.NotEqual(t, first.ContentHash, w.template(t).ContentHash)
	disks, err := filepath.Glob(filepath.Join(w.Out, "cache/disk-*"))
	require.NoError(t, err)
	assert.Len(t, disks, 1, "the cache keeps what the last run used")
	assert.Contains(t, w.progress.String(), "reused")
}

func TestBuildFailureKeepsTheFormerImage(t *testing.T) {
	w := newWorkshop(t)
	w.build(t)
	before := w.template(t)
	for _, c := range []struct{ name, envd, want string }{
		{"envd gone", filepath.Join(t.TempDir(), "none"), "get envd"},
		{"envd fails", w.write(t, "bad", "#!/bin/sh\nexit 1\n"), "for its version: exit status 1"},
		{"envd mute", w.write(t, "mute", "#!/bin/sh\n"), "names none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			broken := w.Config
			broken.Envd = c.envd
			_, err := Build(t.Context(), broken)
			assert.ErrorContains(t, err, c.want)
			assert.Equal(t, before, w.template(t))
			assert.FileExists(t, filepath.Join(w.Out, "templates/demo/rootfs.ext4"))
		})
	}
	none := w.Config
	none.Templates = t.TempDir()
	_, err := Build(t.Context(), none)
	assert.ErrorContains(t, err, "list recipes: none in")
}

func TestBuildsAtOnceAndAfterAKill(t *testing.T) {
	w := newWorkshop(t)
	// What a run that was killed leaves.
	for _, name := range []string{".stage-1/x", ".image-2/x", ".write-3", ".link-vmlinux", "disk-demo-old"} {
		w.write(t, "out/cache/"+name, "left")
	}
	var g errgroup.Group
	for range 2 {
		g.Go(func() error {
			c := w.Config
			c.Progress = &bytes.Buffer{}
			_, err := Build(t.Context(), c)
			return err
		})
	}
	require.NoError(t, g.Wait())
	_, made := w.build(t)
	assert.Empty(t, made)
	entries, err := os.ReadDir(filepath.Join(w.Out, "cache"))
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	assert.Len(t, names, 6, "lock, wrenn-init, kernel, vmlinux, system, disk; got %q", names)
}

func TestLockWaitsAndGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var progress bytes.Buffer
	unlock, err := lock(t.Context(), path, &progress)
	require.NoError(t, err)
	assert.Empty(t, progress.String())

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = lock(ctx, path, &progress)
	assert.True(t, errors.Is(err, context.DeadlineExceeded), "%v", err)
	assert.Contains(t, progress.String(), "waiting for another build")

	unlock()
	unlock, err = lock(t.Context(), path, &progress)
	require.NoError(t, err)
	unlock()
}

func TestPrint(t *testing.T) {
	var out bytes.Buffer
	Report{
		Kernel: "6.1", Envd: "1.0.0", Seconds: 2.5,
		Stages: []Stage{{Name: "a", Reused: true}, {Name: "b"}},
		Files:  []File{{Path: "templates/base/rootfs.ext4", Size: 2 << 30, Allocated: 3 << 20}},
	}.Print(&out)
	assert.Contains(t, out.String(), "templates/base/rootfs.ext4             2048.0            3.0\n")
	assert.Contains(t, out.String(), "kernel 6.1, envd 1.0.0, 2.5 s, 1 of 2 stages reused\n")
}
