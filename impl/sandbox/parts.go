package sandbox

import (
	"context"
	"net/netip"
	"time"
)

// Template is what a sandbox starts from.
type Template struct {
	Name string
	// VCPUs, MemoryMiB and DiskMiB are what a sandbox gets that does not ask; DiskMiB cannot be chosen.
	VCPUs     int
	MemoryMiB int
	DiskMiB   int
	// Kernel and Initramfs are host paths.
	Kernel, Initramfs string
}

// Network makes and removes the networks of sandboxes. A slot is an index, 1 to 32767.
type Network interface {
	// Reserve takes a free slot without touching the kernel; ErrNoSlot when there is none.
	Reserve() (slot int, err error)
	// Claim takes a slot that an earlier life of the agent gave out, with its network, and makes sure that
	// the network's policy is this one. On an error the slot is not taken.
	Claim(ctx context.Context, slot int, policy NetworkPolicy) error
	// Free gives a slot back once its network is removed.
	Free(slot int)
	// Create makes the slot's network, or leaves nothing behind. What an earlier life of the agent left
	// of that slot is replaced.
	Create(ctx context.Context, slot int, policy NetworkPolicy) error
	// SetPolicy replaces the policy of a slot's network at once, for open connections too; on an error
	// the former one holds.
	SetPolicy(ctx context.Context, slot int, policy NetworkPolicy) error
	// Remove removes whatever there is of the slot's network; it is idempotent.
	Remove(ctx context.Context, slot int) error
	// Address is where the host reaches the guest of a slot.
	Address(slot int) netip.Addr
	// Reclaim removes what an earlier life of the agent left of slots that are now neither reserved nor
	// claimed, and returns these slots. It may run beside Create.
	Reclaim(ctx context.Context) (slots []int, err error)
}

// Disk makes the root disks of sandboxes, each in its sandbox's directory.
type Disk interface {
	// Template returns a template by its name; ErrNoTemplate when there is none.
	Template(name string) (Template, error)
	// Create makes a private, writable disk of the template's content and of sizeMiB, after which dir/root.disk
	// opens; 0 is the template's own size.
	Create(ctx context.Context, template, dir string, sizeMiB int) error
	// Remove removes the disk, whole or half made; it is idempotent.
	Remove(ctx context.Context, dir string) error
}

// BootSpec is what a machine is started with.
type BootSpec struct {
	ID string
	// Dir holds the machine's socket and console; it is the sandbox's own.
	Dir               string
	Slot              int
	VCPUs, MemoryMiB  int
	Kernel, Initramfs string
	DiskPath          string
	Limits            Limits
}

// Identity tells a process apart from every other, also from one that gets its pid later.
type Identity struct {
	PID int `json:"pid"`
	// StartTicks is field 22 of /proc/PID/stat: clock ticks after the host's boot.
	StartTicks uint64 `json:"startTicks"`
	// HostBoot is the host's /proc/sys/kernel/random/boot_id.
	HostBoot string `json:"hostBoot"`
}

// Machine is a running VMM process.
type Machine interface {
	Identity() Identity
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Exit says how the process ended; it is empty before Done is closed.
	Exit() string
	// Kill ends the process and returns when it is gone. It is idempotent.
	Kill(ctx context.Context) error
}

// VMM starts machines. A machine outlives both the context that started it and the agent.
type VMM interface {
	// Boot returns when the virtual processors run. A machine beside an error is one that may still run
	// and has to be killed.
	Boot(ctx context.Context, spec BootSpec) (Machine, error)
	// Adopt takes a machine over that an earlier life of the agent started; an error when that very
	// process no longer runs.
	Adopt(id Identity, dir string) (Machine, error)
	// Orphans finds the machines started for directories under root, by directory.
	Orphans(root string) (map[string]Identity, error)
	// Console returns at most limit of the last bytes of a machine's console.
	Console(dir string, limit int) ([]byte, error)
}

// GuestInit is what the guest's daemon is told before user code may run.
type GuestInit struct {
	AccessToken string
	EnvVars     map[string]string
}

// BootReport is what the guest's daemon says of its own start, in seconds of the guest's boot clock.
type BootReport struct {
	EnvdVersion string
	// InitAt is when PID 1 started, EnvdAt when the daemon listened, NowAt when it answered. InitAt is
	// zero when unknown.
	InitAt, EnvdAt, NowAt time.Duration
}

// Guest talks to the daemon in a guest.
type Guest interface {
	// Init repeats the daemon's first call until it is answered, the context ends, or died is closed.
	Init(ctx context.Context, addr netip.Addr, init GuestInit, died <-chan struct{}) (BootReport, error)
}
