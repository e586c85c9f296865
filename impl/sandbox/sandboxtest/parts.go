// Package sandboxtest holds parts of a host that live in memory but behave like real ones, and the
// lifecycle suite that a Manager must pass on them and on the real parts alike.
package sandboxtest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
	// VMMName is the VMM's.
	VMMName string
	// HostBoot is the boot id that new machines get.
	HostBoot string

	mu       sync.Mutex
	disks    map[string]bool // what the kernel holds of disks, by sandbox
	made     map[string]bool // those made in this life of the agent
	pagers   map[string]bool // what provides memory, by sandbox
	broken   []string        // rules that were broken
	reserved map[int]bool
	networks map[int]bool
	policies map[int]sandbox.NetworkPolicy
	machines map[string]*Machine
	nextPID  int
	fail     map[string]error
	on       map[string]func()
}

// NewHost returns an empty host with ten slots.
func NewHost() *Host {
	return &Host{
		Slots: 10, HostBoot: "boot-1", VMMName: "fake 1.0", ConsoleText: "booted\n", reserved: map[int]bool{}, networks: map[int]bool{},
		disks: map[string]bool{}, made: map[string]bool{}, pagers: map[string]bool{}, policies: map[int]sandbox.NetworkPolicy{},
		machines: map[string]*Machine{}, nextPID: 100, fail: map[string]error{}, on: map[string]func(){},
	}
}

// Fail makes the named act fail from now on, after having done its work; a nil error mends it. The acts are
// network.create, .policy, .remove, disk.create, .restore, .keep, .release, memory.describe, .verify, .provide,
// .release, .merge, vmm.boot, .restore, .pause, .resume, .snapshot, .kill, guest.init, .freeze, .thaw.
func (h *Host) Fail(act string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail[act] = err
}

// OnAct calls do when the named act is next about to be done, of those that a machine does.
func (h *Host) OnAct(act string, do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on[act] = do
}

// happen calls what OnAct was given.
func (h *Host) happen(act string) {
	h.mu.Lock()
	do := h.on[act]
	delete(h.on, act)
	h.mu.Unlock()
	if do != nil {
		do()
	}
}

// Stuck lets a machine's processors never run again.
func (h *Host) Stuck(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for dir, m := range h.machines {
		if filepath.Base(dir) == id {
			m.stuck = true
		}
	}
}

// Restart is what a new life of the agent sees: the allocator's memory is gone, the kernel is not.
func (h *Host) Restart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reserved, h.made = map[int]bool{}, map[string]bool{}
}

// Census lists all that exists: networks, reserved slots, machines, and what the kernel holds of disks and memory.
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
	for id := range h.disks {
		found = append(found, "disk "+id)
	}
	for id := range h.pagers {
		found = append(found, "pager "+id)
	}
	slices.Sort(found)
	return found
}

// Crash ends the machine of a sandbox as a guest's own reboot would; false when there is none.
func (h *Host) Crash(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for dir, m := range maps.Clone(h.machines) {
		if filepath.Base(dir) == id {
			m.end("exit status 0")
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

// failing is the error that an act has been told to fail with.
func (h *Host) failing(act string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fail[act]
}

// breakRule notes that a rule was broken which no error tells of. It is called with mu held.
func (h *Host) breakRule(rule string) { h.broken = append(h.broken, rule) }

// Broken lists the rules that were broken: users' processes that ran before their guest had an identity of its
// own, a disk that was let go of under its machine.
func (h *Host) Broken() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.broken)
}

// Memory returns the host's memory part.
func (h *Host) Memory() sandbox.Memory { return memory{h} }

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
