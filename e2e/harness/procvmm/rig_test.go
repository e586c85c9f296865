package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/envdclient"
	"wrenn/impl/firecracker"
	"wrenn/impl/need"
	"wrenn/impl/network"
	"wrenn/impl/transport"
)

// patience is how long anything may take that is over in milliseconds on an idle machine.
const patience = 30 * time.Second

// rig is a host with one disk of the template base, on which guests start one after the other.
type rig struct {
	*network.Host
	image, disk string
	limit       *firecracker.RateLimiter // of what guests send
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	need.Root(tb)
	need.Program(tb, "iptables", "ip", "unshare", "cp")
	r := &rig{image: filepath.Join(harness.Root(tb), "build/image")}
	template := need.File(tb, "image", filepath.Join(r.image, "templates/base/rootfs.ext4"), "run `make image`")
	dir := tb.TempDir()
	r.disk = filepath.Join(dir, "disk.ext4")
	out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", template, r.disk).CombinedOutput()
	require.NoError(tb, err, "%s", out)
	r.Host, err = network.NewHost(network.Config{Logger: slog.New(slog.DiscardHandler), Dir: dir})
	require.NoError(tb, err)
	require.NoError(tb, r.Setup(tb.Context()))
	tb.Cleanup(func() { assert.NoError(tb, r.Teardown(context.WithoutCancel(tb.Context()))) })
	return r
}

// network makes the network of a slot until the test ends.
func (r *rig) network(tb testing.TB, slot network.Slot) {
	tb.Helper()
	require.NoError(tb, r.CreateNetwork(tb.Context(), slot, network.Policy{}))
	tb.Cleanup(func() { assert.NoError(tb, r.RemoveNetwork(context.WithoutCancel(tb.Context()), slot)) })
}

// box is one running guest.
type box struct {
	tb      testing.TB
	api     *firecracker.Client
	process *firecracker.Process
	guest   *envdclient.Client
	console string
	disk    string
	conns   *http.Transport
}

// start boots a guest in the network of slot and waits until its daemon answers.
func (r *rig) start(tb testing.TB, slot network.Slot) *box {
	tb.Helper()
	b := r.boot(tb, slot)
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	user := "user"
	_, err := b.guest.InitWhenReady(ctx, envdclient.InitRequest{DefaultUser: &user})
	require.NoError(tb, err, "console: %s", b.output())
	return b
}

// boot configures and starts a guest as the agent does.
func (r *rig) boot(tb testing.TB, slot network.Slot) *box {
	tb.Helper()
	dir, err := os.MkdirTemp("", "procvmm")
	require.NoError(tb, err)
	socket := filepath.Join(dir, "s")
	b := &box{tb: tb, disk: r.disk, console: filepath.Join(dir, "console"), conns: transport.NewStreamTransport()}
	tb.Cleanup(func() {
		b.end()
		if tb.Failed() {
			tb.Logf("console:\n%s", b.output())
		}
		assert.NoError(tb, os.RemoveAll(dir))
	})
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	b.process, err = firecracker.Launch(ctx, firecracker.LaunchConfig{
		Binary: program(tb), ID: "box", Netns: slot.Netns(), SocketPath: socket, ConsolePath: b.console,
	})
	require.NoError(tb, err)
	b.api = firecracker.NewClient(socket)
	require.NoError(tb, b.api.PutMachineConfig(ctx, firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: 128}))
	require.NoError(tb, b.api.PutBootSource(ctx, firecracker.BootSource{
		KernelImagePath: filepath.Join(r.image, "vmlinux"), InitrdPath: filepath.Join(r.image, "initramfs.cpio.gz"),
		BootArgs: fmt.Sprintf("quiet wrenn.ip=%s/%d wrenn.gw=%s wrenn.hostname=box wrenn.dns=192.0.2.1,192.0.2.2",
			network.GuestIP, network.GuestPrefixBits, network.TapIP),
	}))
	require.NoError(tb, b.api.PutDrive(ctx, firecracker.Drive{DriveID: "root", PathOnHost: r.disk, IsRootDevice: true}))
	require.NoError(tb, b.api.PutNetworkInterface(ctx, firecracker.NetworkInterface{
		IfaceID: "eth0", HostDevName: network.TapName, GuestMAC: network.GuestMAC, TxRateLimiter: r.limit,
	}))
	require.NoError(tb, b.api.PutEntropy(ctx, firecracker.Entropy{}))
	require.NoError(tb, b.api.Start(ctx))
	b.guest, err = envdclient.New(envdclient.Config{
		BaseURL: "http://" + slot.HostIP().String() + ":49983", HTTPClient: &http.Client{Transport: b.conns},
	})
	require.NoError(tb, err)
	return b
}

// end kills the VMM as the agent does and waits until the disk is free for the next one.
func (b *box) end() {
	b.conns.CloseIdleConnections()
	if b.api != nil {
		b.api.Close()
	}
	if b.process != nil {
		assert.NoError(b.tb, b.process.Kill(context.WithoutCancel(b.tb.Context())))
	}
	assert.Eventually(b.tb, func() bool { return len(loops(b.tb, b.disk)) == 0 }, patience, time.Millisecond,
		"the disk stays in use")
}

func (b *box) output() []byte {
	raw, err := os.ReadFile(b.console)
	if err != nil {
		return []byte(err.Error())
	}
	return raw
}

// exec runs a shell script in the guest as user and returns what it printed; it must succeed.
func (b *box) exec(user, script string) string {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(b.tb.Context(), patience)
	defer cancel()
	var out, stderr bytes.Buffer
	exit, err := b.guest.Exec(ctx, envdclient.ExecRequest{
		Cmd: "bash", Args: []string{"-c", script}, User: user, Stdout: &out, Stderr: &stderr,
	})
	require.NoError(b.tb, err)
	require.Zero(b.tb, exit.Code, "%s: %s", script, stderr.Bytes())
	return out.String()
}

// awaitExit waits for the end of the VMM and returns how it ended.
func (b *box) awaitExit() firecracker.ExitStatus {
	b.tb.Helper()
	select {
	case <-b.process.Done():
	case <-time.After(patience):
		require.FailNow(b.tb, "the VMM goes on")
	}
	return b.process.ExitStatus()
}

// processes lists those of the program, VMMs and guests' first ones alike, and what runs in guests.
func processes(tb testing.TB) []string {
	tb.Helper()
	own, err := os.Readlink("/proc/self/ns/pid")
	require.NoError(tb, err)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(tb, err)
	var found []string
	for _, dir := range dirs {
		exe, _ := os.Readlink(dir + "/exe") // kernel threads have none, and one may end meanwhile
		pids, err := os.Readlink(dir + "/ns/pid")
		if exe == program(tb) || err == nil && pids != own && strings.HasSuffix(exe, envdPath) {
			found = append(found, dir+" "+exe)
		}
	}
	return found
}

// loops lists the loop devices of a file.
func loops(tb testing.TB, file string) []string {
	tb.Helper()
	backings, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(tb, err)
	var found []string
	for _, path := range backings {
		if raw, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(raw)) == file {
			found = append(found, path)
		}
	}
	return found
}
