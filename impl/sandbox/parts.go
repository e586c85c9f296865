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

// DiskName is the file in a sandbox's directory that its machine opens as the root disk. A snapshot records
// that name as it is, relative to the directory, so it fits every sandbox.
const DiskName = "root.disk"

// DiskSpec says which disk is meant and what it is like.
type DiskSpec struct {
	// ID is the sandbox's, Dir its directory.
	ID, Dir  string
	Template string
	// SizeMiB of 0 is the template's.
	SizeMiB int
}

// Disk makes the root disks of sandboxes. A disk is some files in a directory, and what the kernel needs
// beside them while a machine uses it.
type Disk interface {
	// Template returns a template by its name; ErrNoTemplate when there is none.
	Template(name string) (Template, error)
	// Create makes a fresh disk of the template, ready to be opened as DiskName.
	Create(ctx context.Context, spec DiskSpec) error
	// Restore makes a private, writable copy of the disk that is kept in the directory from, ready to be
	// opened as DiskName. It never changes what is in from.
	Restore(ctx context.Context, spec DiskSpec, from string) error
	// Keep puts the disk, as it is now, into the directory to. Nothing writes to it meanwhile. With last
	// nothing ever will again, so that the files may be shared; otherwise they are copied.
	Keep(ctx context.Context, spec DiskSpec, to string, last bool) error
	// Release gives back what the kernel holds of the disk, once no machine uses it, and removes its files
	// from the sandbox's directory. It is idempotent.
	Release(ctx context.Context, spec DiskSpec) error
	// Reclaim gives back what the kernel holds of disks of an earlier life whose sandboxes' directories are
	// not among living. It may run beside Create.
	Reclaim(ctx context.Context, living []string) error
}

// Layer tells a layer of memory apart, and what it lies on.
type Layer struct {
	Generation uint64
	MemoryMiB  int
}

// MemoryUse says whose memory is provided from which layers.
type MemoryUse struct {
	// ID is the sandbox's; Dir is its directory, which may take caches and sockets.
	ID, Dir string
	// Layers are memory.0 to memory.N-1 in the directory From. Shared says that From is a named snapshot's,
	// whose caches all its users share.
	From   string
	Layers int
	Shared bool
}

// MemorySource is where a VMM gets a restored machine's memory from: a file that it maps, or the socket of
// a page server.
type MemorySource struct {
	Path string
	Uffd bool
}

// Memory keeps the layers of machines' memory. Names of files are those of package snapshot.
type Memory interface {
	// Diffs says whether a layer can hold changed pages alone; otherwise each snapshot is of all memory.
	Diffs() bool
	// Describe writes the header of the n-th layer in dir, whose data the VMM has just written. It lies on
	// the one before it.
	Describe(ctx context.Context, dir string, n int, layer Layer) error
	// Verify reads n layers in dir and compares them with their headers. Errors name the file and wrap
	// snapshot.ErrDamaged.
	Verify(ctx context.Context, dir string, n int) error
	// Provide makes ready what a machine is restored from.
	Provide(ctx context.Context, use MemoryUse) (MemorySource, error)
	// Release ends what Provide has begun for a sandbox, after its machine. It is idempotent.
	Release(ctx context.Context, id, dir string) error
	// Merge makes one layer, with its header, in the directory to of the n layers in from.
	Merge(ctx context.Context, from string, n int, to string) error
}

// BootSpec is what a machine is started with.
type BootSpec struct {
	ID string
	// Dir holds the machine's socket and console; it is the sandbox's own.
	Dir               string
	Slot              int
	VCPUs, MemoryMiB  int
	Kernel, Initramfs string
	Limits            Limits
}

// RestoreSpec is what a machine is restored from. Dir, Slot and Limits are as in BootSpec, also where the
// snapshot was made with others.
type RestoreSpec struct {
	ID, Dir   string
	Slot      int
	MemoryMiB int
	StatePath string
	// Memory waits until the machine's memory is provided, so that a VMM can start meanwhile. It is called once.
	Memory func(context.Context) (MemorySource, error)
	Limits Limits
}

// MachineSnapshot says where a paused machine is written to.
type MachineSnapshot struct {
	StatePath, MemoryPath string
	MemoryMiB             int
	// Diff writes the pages that may have changed since the last snapshot or the restore; otherwise all
	// memory is written.
	Diff bool
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
	// Pause stops the virtual processors, Resume lets them go on. Both are idempotent.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Snapshot writes a paused machine's state and memory, which it leaves paused.
	Snapshot(ctx context.Context, to MachineSnapshot) error
}

// VMM starts machines. A machine outlives both the context that started it and the agent.
type VMM interface {
	// Name is the VMM's name and version, empty where none can run. What one has written another may not
	// load.
	Name() string
	// Boot returns when the virtual processors run. The disk is DiskName in the directory, relative to it. A
	// machine beside an error is one that may still run and has to be killed.
	Boot(ctx context.Context, spec BootSpec) (Machine, error)
	// Restore returns when the machine is loaded and paused. An error is as with Boot.
	Restore(ctx context.Context, spec RestoreSpec) (Machine, error)
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
	// FormerToken is what the daemon of a restored guest asks for, empty for a fresh one.
	FormerToken string
	// EnvVars replaces the environment of processes to come; nil leaves it.
	EnvVars map[string]string
	// SetClock sets the guest's clock to the time of sending, however little they differ.
	SetClock bool
	// Entropy is mixed into the guest's random state: a restored one shares it with its snapshot.
	Entropy []byte
	// Hostname and MachineID are what the guest is called from then on; empty leaves them.
	Hostname, MachineID string
	// Thaw lets frozen processes go on when all this is done.
	Thaw bool
	// Ready is waited for once the guest is awake, before it is told anything. Its error ends the call; nil
	// is not waited for.
	Ready func(context.Context) error
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
	// Freeze stops the users' processes, ends their connections to the daemon and writes the file systems
	// back. It is idempotent, and Init with Thaw its counterpart.
	Freeze(ctx context.Context, addr netip.Addr, token string) error
}
