package host

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/need"
	"wrenn/vagrant/vmexec/guest"
	"wrenn/vagrant/vmexec/machine"
)

// TestMain makes this test program an init like vmexec itself, since it is what goes into the machines
// of these tests.
func TestMain(m *testing.M) {
	if guest.IsInit() {
		guest.Main()
		return
	}
	goleak.VerifyTestMain(m)
}

// TestAProgramThatIgnoresItsTimeout: the subject hangs before package testing starts its own clock.
func TestAProgramThatIgnoresItsTimeout(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	program := filepath.Join(t.TempDir(), "sick.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "../testdata/sick").CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Chdir("../testdata/sick")
	t.Setenv("WRENN_SICK", "deaf")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := prepare(t.Context(), []string{program, "-test.timeout=1s"})
	require.NoError(t, err)
	require.Equal(t, time.Second+slack, r.limit)
	// Twice the time of a boot on a busy machine: the limit itself is under test, not its length.
	r.limit = 15 * time.Second
	var stdout, stderr bytes.Buffer
	r.out, r.diagnostics = &stdout, &stderr
	start := time.Now()
	_, err = r.run(nil)
	require.ErrorContains(t, err, "ended the machine; its console:")
	assert.Contains(t, stderr.String(), "the tests did not end in 15s")
	assert.Contains(t, stdout.String(), "sick.TestMain(", "the stacks")
	assert.Less(t, time.Since(start), time.Minute)
}

func TestAMachineThatDoesNotBoot(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	t.Chdir("../testdata/sick")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := prepare(t.Context(), []string{"/bin/true"})
	require.NoError(t, err)
	r.machine.Kernel = "no-such-kernel"
	_, err = r.run(nil)
	require.ErrorIs(t, err, errDied)
	assert.ErrorContains(t, err, "no-such-kernel", "QEMU's own words")
}

// TestABootThatStandsStillIsTriedAgain: an emulated machine that never begins had no test to lose.
func TestABootThatStandsStillIsTriedAgain(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	qemu, err := exec.LookPath(machine.Program)
	require.NoError(t, err)
	for _, c := range []struct {
		name        string
		kvm         bool
		hangs       int // so many boots stand still
		powered     int
		wantFailure bool
	}{
		{name: "the first", hangs: 1, powered: 2},
		{name: "all", hangs: emulatedBoots, powered: emulatedBoots, wantFailure: true},
		{name: "on a real processor", kvm: true, hangs: 1, powered: 1, wantFailure: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir("../testdata/sick")
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			r, err := prepare(t.Context(), []string{"/bin/true"})
			require.NoError(t, err)
			powered := filepath.Join(dir, "powered")
			script := fmt.Sprintf("#!/bin/sh\necho >> %[1]s\n[ $(wc -l < %[1]s) -gt %[2]d ] && exec %[3]s \"$@\"\nexec sleep 60\n",
				powered, c.hangs, qemu)
			require.NoError(t, os.WriteFile(filepath.Join(dir, machine.Program), []byte(script), 0o755))
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			var stderr bytes.Buffer
			r.out, r.diagnostics, r.machine.KVM = io.Discard, &stderr, c.kvm
			r.boot = 15 * time.Second // 2.5 s on an idle machine
			if c.wantFailure {
				r.boot = 3 * time.Second // for a shell to begin
			}
			code, err := r.run(nil)
			log, readErr := os.ReadFile(powered)
			require.NoError(t, readErr)
			times := bytes.Count(log, []byte("\n"))
			assert.Equal(t, times-1, strings.Count(stderr.String(), "starting another"))
			if c.wantFailure {
				require.ErrorIs(t, err, errNotBooted)
				assert.Equal(t, c.powered, times)
				return
			}
			require.NoError(t, err)
			assert.Zero(t, code)
			assert.GreaterOrEqual(t, times, c.powered, "a busy machine may need the third")
		})
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want flags
	}{
		{"none", nil, flags{}},
		{"time-out", []string{"-test.timeout=10m0s", "-test.v=true"}, flags{timeout: 10 * time.Minute}},
		{"no time-out", []string{"-test.timeout=0"}, flags{}},
		{
			"absolute files",
			[]string{"-test.coverprofile=/w/cover.out", "-test.trace=/w/../x/trace"},
			flags{out: []string{"/w/cover.out", "/x/trace"}},
		},
		{"in the package's folder", []string{"-test.cpuprofile=cpu"}, flags{out: []string{"/pkg/cpu"}}},
		{
			"in the output folder",
			[]string{"-test.memprofile=mem", "-test.outputdir=/o", "-test.artifacts=true"},
			flags{out: []string{"/o/mem", "/o/_artifacts"}},
		},
		{"artifacts off", []string{"-test.artifacts=false"}, flags{}},
		{"a folder", []string{"-test.gocoverdir=/w/cover"}, flags{out: []string{"/w/cover"}, folders: []string{"/w/cover"}}},
		{"not a test's flags", []string{"-coverprofile=/etc/passwd", "timeout=1s"}, flags{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readFlags(c.args, "/pkg")
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
	_, err := readFlags([]string{"-test.timeout=soon"}, "/pkg")
	assert.ErrorContains(t, err, "-test.timeout")
}

func TestTheKernelIsFetchedOnce(t *testing.T) {
	cache := t.TempDir()
	dir := filepath.Join(cache, "linux-image-9.9.9-1-cloud-amd64_9.9.9-1")
	require.NoError(t, os.Mkdir(dir, 0o755))
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that asking APT would fail
	k, err := findKernel(ctx, cache)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "boot/vmlinuz-9.9.9-1-cloud-amd64"), k.image)
	assert.Equal(t, filepath.Join(dir, "lib/modules/9.9.9-1-cloud-amd64"), k.modules)
	_, err = findKernel(ctx, t.TempDir())
	assert.ErrorIs(t, err, context.Canceled)
}
