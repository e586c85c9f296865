package firecrackertest

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/firecracker"
	"wrenn/impl/need"
)

// life: start, the calls that are then refused, pause, resume, Ctrl-Alt-Del, end.
func (s *suite) life(t *testing.T) {
	v := s.launch(t, "")
	s.boot(t, v, "count")
	ctx := t.Context()
	v.awaitTicks(2)
	info, err := v.Info(ctx)
	require.NoError(t, err)
	assert.Equal(t, firecracker.StateRunning, info.State)

	requireFault(t, v.Start(ctx), afterStart)
	requireFault(t, v.PutMachineConfig(ctx, firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: 128}), afterStart)
	requireFault(t, v.PutBootSource(ctx, firecracker.BootSource{KernelImagePath: s.guest.Kernel}), afterStart)
	requireFault(t, v.PutEntropy(ctx, firecracker.Entropy{}), afterStart)
	require.NoError(t, v.Resume(ctx), "resuming a running guest is no error")

	for round := range 3 {
		begin := time.Now()
		require.NoError(t, v.Pause(ctx))
		paused := time.Since(begin)
		require.NoError(t, v.Pause(ctx), "pausing twice is no error")
		info, err := v.Info(ctx)
		require.NoError(t, err)
		assert.Equal(t, firecracker.StatePaused, info.State)
		// A line that was on its way when the CPUs stopped may still arrive.
		time.Sleep(100 * time.Millisecond)
		before := v.ticks()
		time.Sleep(time.Second) // twenty of the guest's ticks
		assert.Equal(t, before, v.ticks(), "the guest runs on while it is paused")
		begin = time.Now()
		require.NoError(t, v.Resume(ctx))
		t.Logf("round %d: pause %s, resume %s", round, paused.Round(10*time.Microsecond), time.Since(begin).Round(10*time.Microsecond))
		v.awaitTicks(before + 3)
	}
	require.NoError(t, v.CtrlAltDel(ctx))
	assert.Equal(t, firecracker.ExitStatus{Known: true, Code: 0}, v.awaitExit(), "a rebooting guest ends the VMM with 0")
	assert.NoError(t, v.process.Err())
}

// drives: contents, order, read-only, writes that reach the file, and the exit at reboot.
func (s *suite) drives(t *testing.T) {
	v := s.launch(t, "")
	dir := t.TempDir()
	disk := func(name, head string) string {
		path := filepath.Join(dir, name)
		content := append([]byte(head), make([]byte, 1<<20-len(head))...)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	first, second := disk("first", "i am the first!!"), disk("second", "i am the second!")
	// The root drive is /dev/vda, whenever it is configured.
	ctx := t.Context()
	require.NoError(t, v.PutDrive(ctx, firecracker.Drive{DriveID: "data", PathOnHost: second, IsReadOnly: true}))
	require.NoError(t, v.PutDrive(ctx, firecracker.Drive{DriveID: "root", PathOnHost: first, IsRootDevice: true}))
	s.boot(t, v, "drives")
	assert.Equal(t, firecracker.ExitStatus{Known: true, Code: 0}, v.awaitExit())

	out := string(v.output())
	assert.Contains(t, out, `vda holds "i am the first!!" <nil>`)
	assert.Contains(t, out, "vda write: <nil>")
	assert.Contains(t, out, `vdb holds "i am the second!" <nil>`)
	assert.NotContains(t, out, "vdb write: <nil>")
	written := func(path string) string {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(raw[4096 : 4096+16])
	}
	assert.Equal(t, "written by guest", written(first))
	assert.Equal(t, strings.Repeat("\x00", 16), written(second))
}

// devices: what drives and interfaces are refused for before the start.
func (s *suite) devices(t *testing.T) {
	v := s.launch(t, "")
	ctx := t.Context()
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(disk, make([]byte, 4096), 0o600))
	requireFault(t, v.PutDrive(ctx, firecracker.Drive{DriveID: "a", PathOnHost: "/nonexistent"}),
		"Error manipulating the backing file: No such file or directory (os error 2)")
	require.NoError(t, v.PutDrive(ctx, firecracker.Drive{DriveID: "a", PathOnHost: disk, IsRootDevice: true}))
	requireFault(t, v.PutDrive(ctx, firecracker.Drive{DriveID: "b", PathOnHost: disk, IsRootDevice: true}),
		"A root block device already exists!")
	require.NoError(t, v.PutDrive(ctx, firecracker.Drive{DriveID: "a", PathOnHost: disk, IsRootDevice: true, IsReadOnly: true}),
		"the same drive may be configured again")
	config, err := v.VMConfig(ctx)
	require.NoError(t, err)
	require.Len(t, config.Drives, 1)
	assert.True(t, config.Drives[0].IsReadOnly)
	require.NoError(t, v.PutEntropy(ctx, firecracker.Entropy{}))
}

// network: TAPs are attached when they are configured, and carry frames both ways.
func (s *suite) network(t *testing.T) {
	need.Program(t, "ip", "bash")
	ns := namespace(t)
	v := s.launch(t, ns)
	ctx := t.Context()
	const mac = "06:00:00:00:00:01"
	require.NoError(t, v.PutNetworkInterface(ctx, firecracker.NetworkInterface{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: mac}))
	requireFault(t, v.PutNetworkInterface(ctx, firecracker.NetworkInterface{IfaceID: "eth1", HostDevName: "tap1", GuestMAC: mac}),
		"The MAC address is already in use: "+mac)
	requireFault(t, v.PutNetworkInterface(ctx, firecracker.NetworkInterface{IfaceID: "eth1", HostDevName: "tap0"}),
		"Device or resource busy (os error 16)")
	require.NoError(t, v.PutNetworkInterface(ctx, firecracker.NetworkInterface{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: mac}),
		"the same interface may be configured again")
	s.boot(t, v, "net")
	v.await("WRENN-TEST listening", stepLimit)
	require.Eventually(t, func() bool {
		out, err := inNamespace(t, ns, "bash", "-c", `exec 3<>/dev/tcp/169.254.0.21/7 && echo hello >&3 && read -t 10 -u 3 line && echo "$line"`)
		return err == nil && bytes.Equal(out, []byte("hello\n"))
	}, stepLimit, 200*time.Millisecond, "no answer from the guest")
	require.NoError(t, v.Pause(ctx))
	require.NoError(t, v.Resume(ctx))
	out, err := inNamespace(t, ns, "bash", "-c", `exec 3<>/dev/tcp/169.254.0.21/7 && echo again >&3 && read -t 10 -u 3 line && echo "$line"`)
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "again\n", string(out))
}

// limits: what the guest sends is held to the bucket. That it takes at least its time is asserted, not
// that it takes no more: the machine may be slow, the limit may not be high.
func (s *suite) limits(t *testing.T) {
	need.Program(t, "ip", "bash")
	ns := namespace(t)
	v := s.launch(t, ns)
	bucket, err := firecracker.Bandwidth(4_000_000, 1_000_000)
	require.NoError(t, err)
	require.NoError(t, v.PutNetworkInterface(t.Context(), firecracker.NetworkInterface{
		IfaceID: "eth0", HostDevName: "tap0", TxRateLimiter: &firecracker.RateLimiter{Bandwidth: &bucket}}))
	s.boot(t, v, "net")
	v.await("WRENN-TEST listening", stepLimit)
	requireLimited(t, ns)
}

// requireLimited holds what the guest sends to 4 MB/s after the first MB.
func requireLimited(t *testing.T, ns string) {
	t.Helper()
	// The guest echoes 9 MB: 1 MB at once, 8 MB at 4 MB/s.
	const echo = `exec 3<>/dev/tcp/169.254.0.21/7 && { head -c 9000000 /dev/zero >&3 & } && head -c 9000000 <&3 | wc -c`
	begin := time.Now()
	out, err := inNamespace(t, ns, "bash", "-c", echo)
	took := time.Since(begin)
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "9000000\n", string(out))
	t.Logf("9 MB took %s; the bucket says 2 s", took.Round(time.Millisecond))
	assert.Greater(t, took, 1800*time.Millisecond, "faster than the limit")
}

// namespace makes a network namespace with tap0 (169.254.0.22/30) and tap1.
func namespace(t *testing.T) string {
	t.Helper()
	var suffix [4]byte
	_, err := rand.Read(suffix[:])
	require.NoError(t, err)
	name := "fct-" + hex.EncodeToString(suffix[:])
	ip := func(args ...string) {
		out, err := exec.Command("ip", args...).CombinedOutput()
		require.NoError(t, err, "ip %v: %s", args, out)
	}
	ip("netns", "add", name)
	t.Cleanup(func() { ip("netns", "delete", name) })
	for _, tap := range []string{"tap0", "tap1"} {
		ip("-n", name, "tuntap", "add", tap, "mode", "tap")
		ip("-n", name, "link", "set", tap, "up")
	}
	ip("-n", name, "address", "add", "169.254.0.22/30", "dev", "tap0")
	return name
}

func inNamespace(t *testing.T, ns string, argv ...string) ([]byte, error) {
	t.Helper()
	return exec.CommandContext(t.Context(), "timeout", append([]string{"20", "ip", "netns", "exec", ns}, argv...)...).Output()
}

// kill: nothing that the VMM started outlives it, however it ends.
func (s *suite) kill(t *testing.T) {
	v := s.launch(t, "")
	s.boot(t, v, "count")
	pid := v.process.Identity().PID
	below := descendants(t, pid)
	t.Logf("the vmm %d has %d processes below it", pid, len(below))
	require.NoError(t, v.process.Signal(9)) // to the VMM alone, not to its group
	status := v.awaitExit()
	assert.Equal(t, 9, int(status.Signal))
	require.Eventually(t, func() bool {
		for _, p := range below {
			if alive(p) {
				return false
			}
		}
		return true
	}, stepLimit, 20*time.Millisecond, "processes of the killed vmm go on")
}
