//go:build fault

package fault

import (
	"testing"

	"wrenn/e2e/harness"
	"wrenn/impl/need"
	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// TestF01_ASampleOnARealVMM has a few rows of the matrix with guests that have a kernel of their own, by
// QEMU's emulation, which takes seconds for each.
func TestF01_ASampleOnARealVMM(t *testing.T) {
	need.Short(t, "it boots ten guests by emulation")
	t.Parallel() // on a host of its own
	need.Program(t, "qemu-system-x86_64")
	qemu := need.File(t, "build", harness.Build(t, "bin/firecracker-qemu"), "run `make build`")
	r := newRigWith(t, "qemu", harness.AgentConfig{Flags: []string{"--vmm", "qemu-tcg", "--firecracker-qemu", qemu}})
	defer r.end()
	r.withMemory = true
	for _, p := range []point{
		{network.CreateAct, "veth", "after", "kill"},
		{network.CreateAct, "egress", "after", "error"},
		{sandbox.CreateAct, "vmm", "after", "kill"},
		{sandbox.CreateAct, "guest", "after", "error"},
		{sandbox.DestroyAct, "intent", "after", "kill"},
		{sandbox.DestroyAct, "vmm", "before", "error"},
		{sandbox.PauseAct, "memory", "after", "kill"},
		{sandbox.PauseAct, "commit", "after", "error"},
		{sandbox.PauseAct, "commit", "after", "kill"},
		{sandbox.ResumeAct, "vmm", "after", "kill"},
		{sandbox.ResumeAct, "guest", "after", "error"},
	} {
		t.Run(p.String(), func(t *testing.T) { r.at(t).row(p) })
	}
}
