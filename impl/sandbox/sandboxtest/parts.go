// Package sandboxtest holds parts of a host that live in memory but behave like real ones, and the
// lifecycle suite that a Manager must pass on them and on the real parts alike.
package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"wrenn/impl/sandbox"
)

// Host is a host's kernel in memory: the networks, machines and guests that exist on it. It outlives a
// Manager, as a kernel outlives an agent. The zero value is not usable; call NewHost.
type Host struct {
	// Slots is how many slots there are.
	Slots int
	// Hang makes guests never answer.
	Hang bool
	// FailAfterBoot, if set, is returned by a boot beside the machine that it started.
	FailAfterBoot error
	// ConsoleText is what machines print.
	ConsoleText string
	// HostBoot is the boot id that new machines get.
	HostBoot string

	mu       sync.Mutex
	reserved map[int]bool
	networks map[int]bool
	policies map[int]sandbox.NetworkPolicy
	machines map[string]*Machine
	nextPID  int
	fail     map[string]error
}

// NewHost returns an empty host with ten slots.
func NewHost() *Host {
	return &Host{
		Slots: 10, HostBoot: "boot-1", ConsoleText: "booted\n", reserved: map[int]bool{}, networks: map[int]bool{},
		policies: map[int]sandbox.NetworkPolicy{},
		machines: map[string]*Machine{}, nextPID: 100, fail: map[string]error{},
	}
}

// Fail makes the named act ("network.create", "network.policy", "network.remove", "disk.create", "vmm.boot", "vmm.kill",
// "guest.init") fail from now on after having done its work; a nil error mends it.
func (h *Host) Fail(act string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail[act] = err
}

// Restart is what a new life of the agent sees: the allocator's memory is gone, the kernel is not.
func (h *Host) Restart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reserved = map[int]bool{}
}

// Census lists all that exists: networks, reserved slots and machines.
func (h *Host) Census() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found []string
	for slot := range h.networks {
		found = append(found, fmt.Sprintf("network %d", slot))
	}
	for slot := range h.reserved {
		found = append(found, fmt.Sprintf("slot %d", slot))
	}
	for dir := range h.machines {
		found = append(found, "machine "+filepath.Base(dir))
	}
	slices.Sort(found)
	return found
}

// Crash ends the machine of a sandbox as a guest's own reboot would; false when there is none.
func (h *Host) Crash(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for dir, m := range h.machines {
		if filepath.Base(dir) == id {
			m.end("exit status 0")
			delete(h.machines, dir)
			return true
		}
	}
	return false
}

// Move makes machines started below one directory look as if they were started below another.
func (h *Host) Move(from, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for dir, m := range maps.Clone(h.machines) {
		if rest, ok := strings.CutPrefix(dir, from); ok {
			delete(h.machines, dir)
			m.dir = to + rest
			h.machines[m.dir] = m
		}
	}
}

// Policy is what the network of a sandbox in that slot lets through.
func (h *Host) Policy(slot int) sandbox.NetworkPolicy {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.policies[slot]
}

// Network returns the host's network part.
func (h *Host) Network() sandbox.Network { return network{h} }

// Disk returns a disk part with one template named "base".
func (h *Host) Disk() sandbox.Disk { return disk{h} }

// VMM returns the host's VMM part.
func (h *Host) VMM() sandbox.VMM { return vmm{h} }

// Guest returns a guest part that answers at once.
func (h *Host) Guest() sandbox.Guest { return guest{h} }

type network struct{ h *Host }

func (n network) Reserve() (int, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	for slot := 1; slot <= n.h.Slots; slot++ {
		if !n.h.reserved[slot] {
			n.h.reserved[slot] = true
			return slot, nil
		}
	}
	return 0, fmt.Errorf("%w: all %d are taken", sandbox.ErrNoSlot, n.h.Slots)
}

func (n network) Claim(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	n.h.mu.Lock()
	if n.h.reserved[slot] {
		n.h.mu.Unlock()
		return fmt.Errorf("slot %d is taken", slot)
	}
	n.h.mu.Unlock()
	if err := n.SetPolicy(ctx, slot, policy); err != nil {
		return err
	}
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.reserved[slot] = true
	return nil
}

func (n network) Free(slot int) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if !n.h.reserved[slot] {
		panic(fmt.Sprintf("slot %d was freed twice", slot))
	}
	if n.h.networks[slot] {
		panic(fmt.Sprintf("slot %d was freed with its network standing", slot))
	}
	delete(n.h.reserved, slot)
}

func (n network) Create(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if !n.h.reserved[slot] {
		panic(fmt.Sprintf("network of slot %d made without its slot", slot))
	}
	if err := n.h.fail["network.create"]; err != nil {
		return err
	}
	n.h.networks[slot], n.h.policies[slot] = true, policy
	return ctx.Err()
}

func (n network) SetPolicy(_ context.Context, slot int, policy sandbox.NetworkPolicy) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if !n.h.networks[slot] {
		return fmt.Errorf("no network in slot %d", slot)
	}
	if err := n.h.fail["network.policy"]; err != nil {
		return err
	}
	n.h.policies[slot] = policy
	return nil
}

func (n network) Remove(_ context.Context, slot int) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.fail["network.remove"]; err != nil {
		return err
	}
	delete(n.h.networks, slot)
	return nil
}

func (n network) Address(slot int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 11, byte(slot >> 8), byte(slot)})
}

func (n network) Reclaim(context.Context) ([]int, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	var slots []int
	for slot := range maps.Clone(n.h.networks) {
		if !n.h.reserved[slot] {
			delete(n.h.networks, slot)
			slots = append(slots, slot)
		}
	}
	return slots, nil
}

type disk struct{ h *Host }

func (d disk) Template(name string) (sandbox.Template, error) {
	if name != "base" {
		return sandbox.Template{}, fmt.Errorf("%w: %s", sandbox.ErrNoTemplate, name)
	}
	return sandbox.Template{Name: name, VCPUs: 1, MemoryMiB: 256, DiskMiB: 1024, Kernel: "vmlinux", Initramfs: "initramfs"}, nil
}

func (d disk) Create(ctx context.Context, _, dir string, _ int) error {
	if err := os.WriteFile(filepath.Join(dir, "root.disk"), []byte("disk"), 0o600); err != nil {
		return err
	}
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	return errors.Join(d.h.fail["disk.create"], ctx.Err())
}

func (d disk) Remove(_ context.Context, dir string) error {
	if err := os.Remove(filepath.Join(dir, "root.disk")); !os.IsNotExist(err) {
		return err
	}
	return nil
}

// Machine is a VMM process in memory.
type Machine struct {
	h        *Host
	dir      string
	identity sandbox.Identity
	done     chan struct{}
	exit     string
}

func (m *Machine) end(how string) {
	m.exit = how
	close(m.done)
}

// Identity is the machine's pid and start.
func (m *Machine) Identity() sandbox.Identity { return m.identity }

// Done is closed at the machine's end.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit is how the machine ended.
func (m *Machine) Exit() string {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	return m.exit
}

// Kill ends the machine.
func (m *Machine) Kill(context.Context) error {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	if err := m.h.fail["vmm.kill"]; err != nil {
		return err
	}
	if m.h.machines[m.dir] == m {
		delete(m.h.machines, m.dir)
		m.end("signal: killed")
	}
	return nil
}

type vmm struct{ h *Host }

func (v vmm) Boot(ctx context.Context, spec sandbox.BootSpec) (sandbox.Machine, error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	if !v.h.networks[spec.Slot] {
		return nil, fmt.Errorf("no network in slot %d", spec.Slot)
	}
	if _, err := os.Stat(spec.DiskPath); err != nil {
		return nil, err
	}
	if err := errors.Join(v.h.fail["vmm.boot"], ctx.Err()); err != nil {
		return nil, err
	}
	v.h.nextPID++
	m := &Machine{
		h: v.h, dir: spec.Dir, done: make(chan struct{}),
		identity: sandbox.Identity{PID: v.h.nextPID, StartTicks: uint64(v.h.nextPID) * 100, HostBoot: v.h.HostBoot},
	}
	v.h.machines[spec.Dir] = m
	return m, errors.Join(v.h.FailAfterBoot, os.WriteFile(filepath.Join(spec.Dir, "console"), []byte(v.h.ConsoleText), 0o600))
}

func (v vmm) Adopt(id sandbox.Identity, dir string) (sandbox.Machine, error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	m, ok := v.h.machines[dir]
	if !ok || m.identity != id {
		return nil, fmt.Errorf("no process %d of that start runs", id.PID)
	}
	return m, nil
}

func (v vmm) Orphans(root string) (map[string]sandbox.Identity, error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	found := map[string]sandbox.Identity{}
	for dir, m := range v.h.machines {
		if strings.HasPrefix(dir, root+"/") {
			found[dir] = m.identity
		}
	}
	return found, nil
}

func (v vmm) Console(dir string, limit int) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, "console"))
	if err != nil {
		return nil, err
	}
	return bytes.Clone(data[max(0, len(data)-limit):]), nil
}

type guest struct{ h *Host }

func (g guest) Init(ctx context.Context, _ netip.Addr, _ sandbox.GuestInit, died <-chan struct{}) (sandbox.BootReport, error) {
	if g.h.Hang {
		select {
		case <-ctx.Done():
			return sandbox.BootReport{}, ctx.Err()
		case <-died:
			return sandbox.BootReport{}, errors.New("the machine ended")
		}
	}
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	return sandbox.BootReport{
		EnvdVersion: "0.6.0", InitAt: 10 * time.Millisecond, EnvdAt: 20 * time.Millisecond, NowAt: 25 * time.Millisecond,
	}, g.h.fail["guest.init"]
}
