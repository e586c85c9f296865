package firecrackertest

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/firecracker"
	"wrenn/impl/need"
)

type suite struct {
	binary string
	env    []string
	guest  Guest
}

// Run runs the suite against the VMM at binary, which gets env ("NAME=value") on top of PATH. It needs
// root, for the namespaces that VMMs start in.
func Run(t *testing.T, binary string, guest Guest, env ...string) {
	need.Root(t)
	s := &suite{binary: binary, env: env, guest: guest}
	for _, test := range []struct {
		name string
		run  func(*suite, *testing.T)
	}{
		{"CommandLine", (*suite).commandLine},
		{"SocketInUse", (*suite).socketInUse},
		{"Wire", (*suite).wire},
		{"Connections", (*suite).connections},
		{"BeforeStart", (*suite).beforeStart},
		{"MachineConfig", (*suite).machineConfig},
		{"Devices", (*suite).devices},
		{"Life", (*suite).life},
		{"Drives", (*suite).drives},
		{"Network", (*suite).network},
		{"N07_Limits", (*suite).limits},
		{"Kill", (*suite).kill},
		{"S05_SnapshotLife", (*suite).snapshotLife},
		{"S08_BadLoads", (*suite).badLoads},
		{"S07_DiffChain", (*suite).diffChain},
		{"S09_Clones", (*suite).clones},
		{"S05_SnapshotNetwork", (*suite).snapshotNetwork},
		{"S05_PageServer", (*suite).pageServer},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(s, t) })
	}
}

// requireFault asserts that err is a refusal with this status and a message that holds text.
func requireFault(t *testing.T, err error, text string) {
	t.Helper()
	var refusal *firecracker.APIError
	require.True(t, errors.As(err, &refusal), "want an APIError, got %v", err)
	assert.Equal(t, http.StatusBadRequest, refusal.Status)
	assert.Contains(t, refusal.FaultMessage, text)
}

const (
	afterStart  = "The requested operation is not supported after starting the microVM."
	beforeStart = "The requested operation is not supported before starting the microVM."
)

func (s *suite) beforeStart(t *testing.T) {
	v := s.launch(t, "")
	ctx := t.Context()
	info, err := v.Info(ctx)
	require.NoError(t, err)
	assert.Equal(t, "conformance-1", info.ID)
	assert.Equal(t, firecracker.StateNotStarted, info.State)
	assert.Equal(t, "Firecracker", info.AppName)
	version, err := v.Version(ctx)
	require.NoError(t, err)
	assert.Regexp(t, `^\d+\.\d+\.\d+`, version)
	assert.Equal(t, info.VMMVersion, version)

	requireFault(t, v.Pause(ctx), beforeStart)
	requireFault(t, v.Resume(ctx), beforeStart)
	requireFault(t, v.CtrlAltDel(ctx), beforeStart)
	requireFault(t, v.Start(ctx), "Cannot start microvm without kernel configuration.")
	requireFault(t, v.PutBootSource(ctx, firecracker.BootSource{KernelImagePath: "/nonexistent"}),
		"The kernel file cannot be opened: No such file or directory (os error 2)")
	requireFault(t, v.PutBootSource(ctx, firecracker.BootSource{KernelImagePath: s.guest.Kernel, InitrdPath: "/nonexistent"}),
		"The initrd file cannot be opened")
	require.NoError(t, v.PutBootSource(ctx, firecracker.BootSource{KernelImagePath: s.guest.Kernel}))
	// A call that is refused leaves the former configuration in place.
	requireFault(t, v.PutBootSource(ctx, firecracker.BootSource{KernelImagePath: "/nonexistent"}), "cannot be opened")
	config, err := v.VMConfig(ctx)
	require.NoError(t, err)
	assert.Equal(t, s.guest.Kernel, config.BootSource.KernelImagePath)
}

func (s *suite) machineConfig(t *testing.T) {
	v := s.launch(t, "")
	ctx := t.Context()
	config, err := v.VMConfig(ctx)
	require.NoError(t, err)
	assert.Equal(t, firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: 128}, config.Machine, "defaults")
	for _, test := range []struct {
		cpus, memory int
		refused      bool
	}{{1, 128, false}, {3, 256, false}, {32, 1, false}, {0, 128, true}, {33, 128, true}, {1, 0, true}} {
		want := firecracker.MachineConfig{VCPUCount: test.cpus, MemSizeMiB: test.memory}
		err := v.PutMachineConfig(ctx, want)
		if test.refused {
			requireFault(t, err, "")
			continue
		}
		require.NoError(t, err)
		config, err := v.VMConfig(ctx)
		require.NoError(t, err)
		assert.Equal(t, want, config.Machine)
	}
}
