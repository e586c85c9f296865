package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"wrenn/impl/firecracker"
	"wrenn/impl/need"
	"wrenn/impl/netns"
	"wrenn/impl/netns/netnstest"
	"wrenn/impl/network"
	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/uffd"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == uffd.CommandName { // a page server is a subcommand of the agent's program
		cmd := &cobra.Command{Use: "agent.test"}
		cmd.AddCommand(uffd.Command())
		if err := cmd.Execute(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	netnstest.Isolate()
	if lo, err := netlink.LinkByName("lo"); err == nil && os.Geteuid() == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// imageDir is what `make image` built.
func imageDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../build/image")
	require.NoError(t, err)
	need.File(t, "image", filepath.Join(dir, "templates/base/rootfs.ext4"), "run `make image`")
	return dir
}

// standIn builds firecracker-qemu once per run of the tests.
var standIn = sync.OnceValues(func() (string, error) {
	dir, err := filepath.Abs("../../build/test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "firecracker-qemu")
	cmd := exec.Command("go", "build", "-o", path, "wrenn/impl/cmd/firecracker-qemu")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
})

// shortDir is for paths that hold Unix sockets, which t.TempDir makes too long.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wa") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// TestA07_LifecycleOnTheRealParts runs the domain's suite on real namespaces, disks, VMs and guests.
func TestA07_LifecycleOnTheRealParts(t *testing.T) {
	need.Root(t)
	need.Program(t, "qemu-system-x86_64", "iptables", "ip", "unshare")
	need.Short(t, "it boots two dozen guests")
	image := imageDir(t)
	binary, err := standIn()
	require.NoError(t, err)
	sandboxtest.Lifecycle(t, func(t *testing.T) sandboxtest.Ground { return realGround(t, image, binary, BackendFile) })
}

// TestS10_PausesByAPageServer runs the pauses with a process per machine that fills its memory.
func TestS10_PausesByAPageServer(t *testing.T) {
	need.Root(t)
	need.Program(t, "qemu-system-x86_64", "iptables", "ip", "unshare")
	need.Short(t, "it boots guests")
	need.File(t, "userfaultfd", "/dev/userfaultfd", "a kernel of 6.1 or later")
	image := imageDir(t)
	binary, err := standIn()
	require.NoError(t, err)
	sandboxtest.Pauses(t, func(t *testing.T) sandboxtest.Ground { return realGround(t, image, binary, BackendUffd) })
}

func realGround(t *testing.T, image, binary, backend string) sandboxtest.Ground {
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := shortDir(t)
	cfg := Config{Dir: dir, ImageDir: image, Logger: logger, MemoryBackend: backend}
	host, err := network.NewHost(network.Config{Logger: logger, Dir: dir})
	require.NoError(t, err)
	require.NoError(t, host.Setup(t.Context()))
	t.Cleanup(func() { assert.NoError(t, host.Teardown(context.WithoutCancel(t.Context()))) })
	disks, err := rootfs.NewStore(rootfs.Config{ImageDir: image, Dir: filepath.Join(dir, "disks"), Logger: logger})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, disks.Close()) })
	layers := newMemoryPart(cfg)
	part := &networkPart{}
	restart := func() {
		layers.close() // as an agent's end does; the page servers live on
		layers.closed = false
		fresh, err := newNetworkPart(cfg, host)
		require.NoError(t, err)
		*part = *fresh
	}
	restart()
	return sandboxtest.Ground{
		Config: sandbox.Config{
			Dir: filepath.Join(dir, "sandboxes"), Logger: logger, Network: part, Disk: newDiskPart(cfg, disks), Memory: layers,
			VMM: &vmmPart{
				memory: layers,
				choice: Choice{Name: VMMQEMUTCG, Binary: binary, Env: []string{"WRENN_QEMU_ACCEL=tcg"}},
				logger: logger, background: t.Context(),
			},
			Guest: &guestPart{},
		},
		Write: func(t *testing.T, id, key, value string) {
			guestWrite(t, filepath.Join(dir, "sandboxes"), id, key, value)
		},
		Read: func(t *testing.T, id, key string) (string, string) {
			return guestRead(t, filepath.Join(dir, "sandboxes"), id, key)
		},
		Self: func(t *testing.T, id string) sandboxtest.Self {
			return guestSelf(t, filepath.Join(dir, "sandboxes"), id)
		},
		Template: "base", Restart: restart, Patience: 2 * time.Minute,
		Crash: func(t *testing.T, id string) {
			vmms, err := firecracker.Orphans(filepath.Join(dir, "sandboxes"))
			require.NoError(t, err)
			vmm, ok := vmms[filepath.Join(dir, "sandboxes", id)]
			require.True(t, ok, "no VMM of %s among %v", id, vmms)
			require.NoError(t, syscall.Kill(vmm.PID, syscall.SIGKILL))
			require.Eventually(t, func() bool { return syscall.Kill(vmm.PID, 0) != nil }, time.Minute, time.Millisecond)
		},
		Census: func(t *testing.T) []string {
			found, err := netns.List()
			require.NoError(t, err)
			vmms, err := firecracker.Orphans(dir)
			require.NoError(t, err)
			for path := range vmms {
				found = append(found, path)
			}
			links, err := os.ReadDir("/proc/sys/net/ipv4/conf")
			require.NoError(t, err)
			for _, l := range links {
				found = append(found, l.Name())
			}
			return found
		},
	}
}
