package firecrackertest

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/firecracker"
	"wrenn/impl/need"
)

// echoed asks the guest behind the namespace's tap for an echo.
func echoed(t *testing.T, ns, text string) bool {
	t.Helper()
	out, err := inNamespace(t, ns, "bash", "-c",
		`exec 3<>/dev/tcp/169.254.0.21/7 && echo `+text+` >&3 && read -t 10 -u 3 line && echo "$line"`)
	return err == nil && string(out) == text+"\n"
}

func requireEcho(t *testing.T, ns, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return echoed(t, ns, text) }, stepLimit, 200*time.Millisecond, "no answer from the guest")
}

// snapshotNetwork: a machine finds its TAP in another namespace, or another TAP by an override, and its limits
// can be set after the load.
func (s *suite) snapshotNetwork(t *testing.T) {
	need.Program(t, "ip", "bash")
	ctx, dir := t.Context(), t.TempDir()
	ns := namespace(t)
	v := s.launch(t, ns)
	require.NoError(t, v.PutNetworkInterface(ctx, firecracker.NetworkInterface{IfaceID: "eth0", HostDevName: "tap0"}))
	s.boot(t, v, "net")
	v.await("WRENN-TEST listening", stepLimit)
	requireEcho(t, ns, "first")
	require.NoError(t, v.Pause(ctx))
	base := newSnapshot(dir, "base")
	v.create(firecracker.SnapshotFull, base)
	require.NoError(t, v.Resume(ctx))
	requireEcho(t, ns, "source")

	other := namespace(t)
	clone := s.launch(t, other)
	clone.load(base.loadFile())
	require.NoError(t, clone.Resume(ctx))
	requireEcho(t, other, "clone")
	requireEcho(t, ns, "source")

	bucket, err := firecracker.Bandwidth(4_000_000, 1_000_000)
	require.NoError(t, err)
	require.NoError(t, clone.PatchNetworkInterface(ctx, firecracker.NetworkInterfacePatch{IfaceID: "eth0",
		TxRateLimiter: &firecracker.RateLimiter{Bandwidth: &bucket}}))
	requireLimited(t, other)

	// The limit is part of the next snapshot.
	require.NoError(t, clone.Pause(ctx))
	limited := newSnapshot(dir, "limited")
	clone.create(firecracker.SnapshotFull, limited)
	require.NoError(t, clone.process.Kill(ctx))

	overridden := s.launch(t, other)
	l := limited.loadFile()
	l.NetworkOverrides = []firecracker.NetworkOverride{{IfaceID: "eth0", HostDevName: "tap1"}}
	overridden.load(l)
	config, err := overridden.VMConfig(ctx)
	require.NoError(t, err)
	require.Len(t, config.NetworkInterfaces, 1)
	assert.Equal(t, "tap1", config.NetworkInterfaces[0].HostDevName)
	require.NoError(t, overridden.Resume(ctx))
	moveAddress(t, other)
	requireEcho(t, other, "overridden")
	requireLimited(t, other)

	for name, change := range map[string]func(*firecracker.SnapshotLoad){
		"TAP in use":        func(*firecracker.SnapshotLoad) {},
		"unknown interface": func(l *firecracker.SnapshotLoad) { l.NetworkOverrides[0].IfaceID = "eth7" },
	} {
		t.Run(name, func(t *testing.T) {
			v := s.launch(t, other)
			l := limited.loadFile()
			l.NetworkOverrides = []firecracker.NetworkOverride{{IfaceID: "eth0", HostDevName: "tap1"}}
			change(&l)
			requireFault(t, v.LoadSnapshot(t.Context(), l), "Load snapshot error: Failed to restore from snapshot: ")
			assert.Equal(t, firecracker.ExitStatus{Known: true, Code: 1}, v.awaitExit())
		})
	}
}

// moveAddress gives the address of tap0 to tap1.
func moveAddress(t *testing.T, ns string) {
	t.Helper()
	for _, args := range [][]string{{"del", "169.254.0.22/30", "dev", "tap0"}, {"add", "169.254.0.22/30", "dev", "tap1"}} {
		out, err := inNamespace(t, ns, append([]string{"ip", "address"}, args...)...)
		require.NoError(t, err, "ip address %v: %s", args, out)
	}
}

// pageServer: the pages come from a server, the machine goes on from them, and its Diff fits the server's file.
func (s *suite) pageServer(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	v := s.launch(t, "")
	s.boot(t, v, "churn")
	v.awaitTicks(5)
	require.NoError(t, v.Pause(ctx))
	base := newSnapshot(dir, "base")
	v.create(firecracker.SnapshotFull, base)
	time.Sleep(100 * time.Millisecond)
	last := v.ticks()
	require.NoError(t, v.process.Kill(ctx))

	restored := s.launch(t, "")
	socket := filepath.Join(restored.dir, "pager.sock")
	server := ServePages(t, socket, base.memory, 0)
	l := base.loadFile()
	l.Memory = firecracker.MemoryBackend{Type: firecracker.BackendUffd, Path: socket}
	restored.load(l)
	restored.requireState(firecracker.StatePaused)
	require.NoError(t, restored.Resume(ctx))
	assert.Contains(t, []int{last + 1, last + 2}, restored.firstTick())
	restored.requireSound()
	t.Logf("%d pages copied, %d zeroed", server.Copied.Load(), server.Zeroed.Load())
	assert.Positive(t, server.Copied.Load())
	require.NoError(t, restored.Pause(ctx))
	diff, full := newSnapshot(dir, "diff"), newSnapshot(dir, "full")
	restored.create(firecracker.SnapshotDiff, diff)
	restored.create(firecracker.SnapshotFull, full)
	merged := filepath.Join(dir, "merged")
	copyFile(t, base.memory, merged)
	merge(t, merged, diff.memory)
	requireSameFile(t, full.memory, merged)
	select {
	case <-server.HungUp:
		require.FailNow(t, "the vmm has closed its connection while it lives")
	default:
	}
	require.NoError(t, restored.process.Kill(ctx))
	select {
	case <-server.HungUp:
	case <-time.After(stepLimit):
		require.FailNow(t, "the server does not see the end of the vmm")
	}

	none := s.launch(t, "")
	l.Memory.Path = filepath.Join(none.dir, "nobody.sock")
	requireFault(t, none.LoadSnapshot(ctx, l), "No such file or directory (os error 2)")
	assert.Equal(t, firecracker.ExitStatus{Known: true, Code: 1}, none.awaitExit())
}
