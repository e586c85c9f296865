package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"wrenn/impl/firecracker"
	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// Names in a sandbox's directory.
const (
	socketName  = "vmm.sock"
	consoleName = "console.log"
)

// ifaceID is the VMM's name of the guest's network interface, as snapshots have it.
const ifaceID = "eth0"

// vmmPart is the real sandbox.VMM.
type vmmPart struct {
	choice    Choice
	resolvers []netip.Addr
	memory    *memoryPart
	dump      bool // Config.DumpMemory
	logger    *slog.Logger
	// background ends with the agent; what watches a machine hangs on it, never on a request.
	background context.Context
}

// Name is the VMM's. What it has written itself it can load; its version is checked by its own state file.
func (v *vmmPart) Name() string { return v.choice.Name }

func (v *vmmPart) Boot(ctx context.Context, spec sandbox.BootSpec) (sandbox.Machine, error) {
	m, err := v.launch(ctx, spec.ID, spec.Dir, spec.Slot)
	if err != nil {
		return nil, err
	}
	return m, v.configure(ctx, spec)
}

// configure tells the VMM what to run and starts it.
func (v *vmmPart) configure(ctx context.Context, spec sandbox.BootSpec) error {
	tx, err := limiter(spec.Limits.Egress)
	if err != nil {
		return err
	}
	rx, err := limiter(spec.Limits.Ingress)
	if err != nil {
		return err
	}
	c := firecracker.NewClient(filepath.Join(spec.Dir, socketName))
	defer c.Close()
	for _, call := range []func() error{
		func() error {
			return c.PutMachineConfig(ctx, firecracker.MachineConfig{VCPUCount: spec.VCPUs, MemSizeMiB: spec.MemoryMiB, TrackDirtyPages: true})
		},
		func() error {
			return c.PutBootSource(ctx, firecracker.BootSource{
				KernelImagePath: spec.Kernel, InitrdPath: spec.Initramfs, BootArgs: v.bootArgs(spec.ID),
			})
		},
		func() error {
			return c.PutDrive(ctx, firecracker.Drive{DriveID: "root", PathOnHost: sandbox.DiskName, IsRootDevice: true})
		},
		func() error {
			return c.PutNetworkInterface(ctx, firecracker.NetworkInterface{
				IfaceID: ifaceID, HostDevName: network.TapName, GuestMAC: network.GuestMAC, TxRateLimiter: tx, RxRateLimiter: rx,
			})
		},
		func() error { return c.PutEntropy(ctx, firecracker.Entropy{}) },
		func() error { return c.Start(ctx) },
	} {
		if err := call(); err != nil {
			return fmt.Errorf("configure the VMM: %w", err)
		}
	}
	return nil
}

// bootArgs is the kernel's command line. The VMM adds the root device; wrenn-init reads wrenn.*.
func (v *vmmPart) bootArgs(hostname string) string {
	args := []string{
		"console=ttyS0", "quiet", "reboot=k", "panic=1", "pci=off", "net.ifnames=0",
		fmt.Sprintf("wrenn.ip=%s/%d", network.GuestIP, network.GuestPrefixBits), "wrenn.gw=" + network.TapIP, "wrenn.hostname=" + hostname,
	}
	if len(v.resolvers) > 0 {
		var list []string
		for _, r := range v.resolvers {
			list = append(list, r.String())
		}
		args = append(args, "wrenn.dns="+strings.Join(list, ","))
	}
	return strings.Join(args, " ")
}

func (v *vmmPart) Adopt(id sandbox.Identity, dir string) (sandbox.Machine, error) {
	p, err := firecracker.Adopt(firecracker.Identity{PID: id.PID, StartTicks: id.StartTicks, BootID: id.HostBoot})
	if err != nil {
		return nil, err
	}
	m := v.watch(p, dir)
	v.memory.guard(v.background, dir, m)
	return m, nil
}

func (v *vmmPart) Orphans(root string) (map[string]sandbox.Identity, error) {
	found, err := firecracker.Orphans(root)
	if err != nil {
		return nil, err
	}
	out := make(map[string]sandbox.Identity, len(found))
	for dir, id := range found {
		out[dir] = identityFrom(id)
	}
	return out, nil
}

func (v *vmmPart) Console(dir string, limit int) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, consoleName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read console: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("read console: %w", err)
	}
	data := make([]byte, min(size, int64(limit)))
	n, err := f.ReadAt(data, size-int64(len(data)))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read console: %w", err)
	}
	return data[:n], nil
}

// watch bounds the machine's console for as long as machine and agent live.
func (v *vmmPart) watch(p *firecracker.Process, dir string) machine {
	go firecracker.KeepConsoleCapped(v.background, v.logger, p, filepath.Join(dir, consoleName), firecracker.DefaultConsoleBytes)
	return machine{p: p, dir: dir, dump: v.dump}
}

func identityFrom(id firecracker.Identity) sandbox.Identity {
	return sandbox.Identity{PID: id.PID, StartTicks: id.StartTicks, HostBoot: id.BootID}
}
