package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/firecracker"
	"wrenn/impl/need"
	"wrenn/impl/network"
)

// TestFirstExec reports how long it takes from nothing to the first program's end, over 50 guests.
func TestFirstExec(t *testing.T) {
	r := newRig(t)
	r.network(t, 1)
	var up, first []time.Duration
	for range 50 {
		begin := time.Now()
		b := r.start(t, 1)
		up = append(up, time.Since(begin))
		assert.Equal(t, "hello\n", b.exec("", "echo hello"))
		first = append(first, time.Since(begin))
		b.end()
	}
	slices.Sort(up)
	slices.Sort(first)
	t.Logf("daemon up: p50 %v, max %v; first exec done: p50 %v, p90 %v, max %v", up[25], up[49], first[25], first[45], first[49])
}

// Test200LivesLeaveNothing goes through whole lives, network included, and looks at the host afterwards.
func Test200LivesLeaveNothing(t *testing.T) {
	need.Short(t, "it runs 200 guests")
	r := newRig(t)
	before := harness.Take(t)
	begin := time.Now()
	for i := range 200 {
		slot := network.Slot(1 + i%7)
		require.NoError(t, r.CreateNetwork(t.Context(), slot, network.Policy{}))
		b := r.start(t, slot)
		assert.Equal(t, "hello\n", b.exec("", "echo hello"))
		b.end()
		require.NoError(t, r.RemoveNetwork(t.Context(), slot))
	}
	t.Logf("200 lives took %v", time.Since(begin))
	before.Same(t)
	assert.Empty(t, processes(t))
}

// TestProbeTakesItForAVMM is what lets an agent choose it.
func TestProbeTakesItForAVMM(t *testing.T) {
	need.Root(t)
	need.Program(t, "unshare")
	image := filepath.Join(harness.Root(t), "build/image")
	v, err := firecracker.Probe(t.Context(), firecracker.ProbeConfig{
		Binary: program(t), Kernel: need.File(t, "image", filepath.Join(image, "vmlinux"), "run `make image`"),
		Initramfs: filepath.Join(image, "initramfs.cpio.gz"), Timeout: patience,
	})
	require.NoError(t, err)
	assert.True(t, v.OK, v.Reason)
	assert.Equal(t, "booted Linux "+kernelRelease(), v.Reason)
}

// TestA01_WrennUpRunsOnIt drives the whole system by its public API, with this program as its VMM.
func TestA01_WrennUpRunsOnIt(t *testing.T) {
	need.Root(t)
	need.File(t, "kvm", "/dev/kvm", "the agent looks for it before it tries a Firecracker")
	t.Setenv("WRENN_E2E_VMM", "firecracker")
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t), "--firecracker", program(t))
	idle := harness.Take(t)
	var took []time.Duration
	for range 10 {
		begin := time.Now()
		box := s.CreateWith(apiclient.CreateRequest{TemplateID: "base", Timeout: 600, EnvVars: map[string]string{"GREETING": "hello"}})
		assert.Equal(t, "user\n/home/user\nhello\n", s.Exec(box, "bash", "-c", "whoami; pwd; echo $GREETING"))
		took = append(took, time.Since(begin))
		assert.Contains(t, s.Exec(box, "uname", "-n"), box.SandboxID)
		require.NoError(t, s.Guest(box).WriteFile(t.Context(), "", "file", strings.NewReader("text"), 4))
		assert.Equal(t, "text", s.Exec(box, "cat", "/home/user/file"))
		list, err := s.Client.List(t.Context(), nil)
		require.NoError(t, err)
		assert.Len(t, list, 1)
		require.NoError(t, s.Client.Kill(t.Context(), box.SandboxID))
	}
	slices.Sort(took)
	t.Logf("create and first exec through the API: p50 %v, max %v", took[5], took[9])
	idle.Same(t)
	s.Stop()
	before.Same(t)
	assert.Empty(t, processes(t))
}
