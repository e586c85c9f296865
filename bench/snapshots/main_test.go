// Package snapshots_test measures pauses, resumes and starts from snapshots of real machines, beside the VMM's
// own calls on machines in the same state. Nothing here asserts a speed; figures are medians, and what is compared
// takes turns, so that a noisy machine disturbs both alike.
package snapshots_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/need"
	"wrenn/impl/network"
)

func TestMain(m *testing.M) { harness.MainOnOwnHost(m) }

// rounds is how often each thing is measured, half of them before what it is compared with and half after it: the median of
// five bears two disturbances.
const rounds = 10

// figures are times by what they are of, in milliseconds.
type figures map[string][]float64

func (f figures) add(name string, ms float64) { f[name] = append(f[name], ms) }

// stages adds the times of an act's stages.
func (f figures) stages(stages []apiclient.Stage) {
	for _, s := range stages {
		f.add(s.Name, s.Ms)
	}
}

// median is the mean of two medians: of the rounds in which it was measured first, and of those in which it was second. Who
// is second may find in memory what the first has read, so that the median of all would be of one of the two, by chance.
func (f figures) median(name string) float64 {
	var turns [2][]float64
	for i, ms := range f[name] {
		turns[i%2] = append(turns[i%2], ms)
	}
	var sum float64
	for _, ms := range turns {
		slices.Sort(ms)
		sum += ms[len(ms)/2] / float64(len(turns))
	}
	return sum
}

// report gives the medians. ns/op would be of all rounds together with what prepares them.
func (f figures) report(b *testing.B) {
	for name := range f {
		b.ReportMetric(f.median(name), name+"-p50-ms")
	}
	b.ReportMetric(0, "ns/op")
	load, err := os.ReadFile("/proc/loadavg")
	require.NoError(b, err)
	var one float64
	_, err = fmt.Sscan(string(load), &one)
	require.NoError(b, err)
	b.ReportMetric(one, "load")
}

// timed is how long do takes in milliseconds.
func timed(b *testing.B, do func() error) float64 {
	b.Helper()
	start := time.Now()
	require.NoError(b, do())
	return float64(time.Since(start)) / float64(time.Millisecond)
}

func patience(b *testing.B) context.Context {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), harness.Patience)
	b.Cleanup(cancel)
	return ctx
}

// dirty changes mib MiB of a guest's memory: in each page of so much of a file in memory one byte.
func dirty(b *testing.B, s *harness.System, box apiclient.Sandbox, mib, round int) {
	b.Helper()
	if mib == 0 {
		return
	}
	const script = `
import mmap, sys
size = int(sys.argv[1]) << 20
with open("/dev/shm/dirty", "a+b") as f:
    if f.seek(0, 2) < size: f.truncate(size)
    pages = mmap.mmap(f.fileno(), size)
    for at in range(0, size, 4096): pages[at] = int(sys.argv[2])
`
	_, err := s.TryExec(box, "python3", "-c", script, fmt.Sprint(mib), fmt.Sprint(round%255+1))
	require.NoError(b, err)
}

// large is a template with memory enough for 256 MiB in /dev/shm, which may have half of it.
const large = "large"

// start starts Wrenn on this machine's own file system, with a template more than `make image` makes: base with
// 1 GiB of memory.
func start(b *testing.B, flags ...string) *harness.System {
	b.Helper()
	return startIn(b, harness.Build(b, ""), harness.Dir(b), flags...)
}

// startIn has the image below one directory and all else in another.
func startIn(b *testing.B, images, dir string, flags ...string) *harness.System {
	b.Helper()
	from := filepath.Dir(need.File(b, "image", harness.Build(b, "image/vmlinux"), "run `make image`"))
	image, err := os.MkdirTemp(images, "bench-image-") //nolint:usetesting // it is for the caller to say where
	require.NoError(b, err)
	b.Cleanup(func() { assert.NoError(b, os.RemoveAll(image)) })
	base := filepath.Join(from, "templates/base")
	for _, template := range []string{"base", large} {
		dir := filepath.Join(image, "templates", template)
		require.NoError(b, os.MkdirAll(dir, 0o700))
		bring(b, filepath.Join(base, "rootfs.ext4"), filepath.Join(dir, "rootfs.ext4"))
		var meta map[string]any
		data, err := os.ReadFile(filepath.Join(base, "template.json"))
		require.NoError(b, err)
		require.NoError(b, json.Unmarshal(data, &meta))
		if template == large {
			meta["name"], meta["memoryMib"] = large, 1024
		}
		data, err = json.Marshal(meta)
		require.NoError(b, err)
		require.NoError(b, os.WriteFile(filepath.Join(dir, "template.json"), data, 0o600))
	}
	for _, name := range []string{"vmlinux", "initramfs.cpio.gz"} {
		bring(b, filepath.Join(from, name), filepath.Join(image, name))
	}
	// The harness has no networks ready, so that a census knows what has to be there. Users have.
	return harness.Start(b, dir, append([]string{"--image-dir", image, "--ready-networks", strconv.Itoa(network.DefaultReady)}, flags...)...)
}

// bring makes a file of the image appear elsewhere: by a hard link, or by a copy on another file system.
func bring(b *testing.B, from, to string) {
	b.Helper()
	if os.Link(from, to) == nil {
		return
	}
	out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput()
	require.NoError(b, err, "%s", out)
}

// sharesBlocks mounts a file system whose files can share blocks, as a production host without device-mapper has
// one: XFS, in a file on this machine's own.
func sharesBlocks(b *testing.B) (images, dir string) {
	b.Helper()
	need.Program(b, "mkfs.xfs", "mount", "umount")
	disk, mount := filepath.Join(harness.Dir(b), "xfs"), harness.Dir(b)
	require.NoError(b, errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 24<<30)))
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", disk}, {"mount", "-o", "loop", disk, mount}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(b, err, "%v: %s", args, out)
	}
	b.Cleanup(func() {
		out, err := exec.Command("umount", mount).CombinedOutput()
		assert.NoError(b, err, "%s", out)
	})
	images, dir = filepath.Join(mount, "image"), filepath.Join(mount, "d") // a short name: sockets lie below it
	require.NoError(b, errors.Join(os.Mkdir(images, 0o700), os.Mkdir(dir, 0o700)))
	return images, dir
}

func create(b *testing.B, s *harness.System, template string) apiclient.Sandbox {
	b.Helper()
	box, err := s.TryCreate(apiclient.CreateRequest{TemplateID: template, Timeout: 3600})
	require.NoError(b, err)
	return box
}

func pause(b *testing.B, s *harness.System, id string) []apiclient.Stage {
	b.Helper()
	stages, err := s.Client.Pause(patience(b), id, false)
	require.NoError(b, err)
	return stages
}

func resume(b *testing.B, s *harness.System, id string) apiclient.Boot {
	b.Helper()
	box, err := s.Client.Resume(patience(b), id, 3600, false)
	require.NoError(b, err)
	require.NotNil(b, box.Wrenn)
	return *box.Wrenn
}
