// Package sandbox is the domain: what a sandbox is, the states of its life, and the Manager that
// owns all sandboxes of one host. It knows no kernel object; it says what it needs of a network, a
// disk, a VMM and a guest, and package agent wires real ones in.
//
// One goroutine owns one sandbox. It performs the sandbox's create, its pauses, resumes and snapshots,
// waits for its end (destroy, its deadline, or the death of its VMM) and tears it down, so that these can
// never overlap. Before the kernel is touched the journal in the sandbox's directory says what is about
// to be done, so that a later life of the agent can finish or undo it.
//
// A pause is undone up to the rename that commits its snapshot, and finished after it. A resume that fails,
// or that a later life finds half done, ends as a pause does, with the snapshot as it was. A sandbox whose
// machine dies has failed and is never taken back to an older snapshot, since it has moved on from that.
package sandbox

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"wrenn/impl/egress"
)

// Errors that a caller decides on. Each returned error wraps one of them and says what and why.
var (
	ErrInvalid    = errors.New("invalid argument")
	ErrNotFound   = errors.New("no such sandbox")
	ErrExists     = errors.New("sandbox exists already")
	ErrConflict   = errors.New("conflict with the sandbox's state")
	ErrNoTemplate = errors.New("no such template")
	ErrNoSlot     = errors.New("no free slot")
	ErrNoMemory   = errors.New("not enough memory")
	ErrNoDisk     = errors.New("not enough disk space")
	ErrNoVMM      = errors.New("the VMM cannot run")
	ErrClosed     = errors.New("the agent is stopping")

	ErrNoSnapshot     = errors.New("no such snapshot")
	ErrSnapshotExists = errors.New("snapshot exists already")
	ErrSnapshotUsed   = errors.New("snapshot is in use")
)

// BootPath is how a sandbox came up.
type BootPath string

// The boot paths: a kernel booted, a snapshot was loaded, a running machine was handed out.
const (
	Cold     BootPath = "cold"
	Restored BootPath = "restored"
	Warm     BootPath = "warm"
)

// Stage is the time that one named part of a create, a pause, a resume or a snapshot took.
type Stage struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration"`
}

// CreateRequest is what a caller asks of Manager.Create.
type CreateRequest struct {
	// ID is 1 to 32 characters of a-z and 0-9.
	ID       string
	Template string
	// VCPUs is 1 to 32 and MemoryMiB 128 to 65536; 0 takes the template's.
	VCPUs, MemoryMiB int
	// Timeout is how long the sandbox lives from now: 1 s to 30 days.
	Timeout     time.Duration
	EnvVars     map[string]string
	Metadata    map[string]string
	AccessToken string
	// AllowInternet, AllowOut and DenyOut are the sandbox's egress.Rules.
	AllowInternet     bool
	AllowOut, DenyOut []string
	// Limits of 0 are the host's.
	Limits Limits
	// DiskMiB is at least the template's; 0 takes the template's.
	DiskMiB int
	// Snapshot is the name of one to start from in place of a template. VCPUs, MemoryMiB and DiskMiB are
	// then the snapshot's, and 0 here or the same.
	Snapshot  string
	Lifecycle Lifecycle
}

// Lifecycle says what becomes of a sandbox at its deadline, and how it comes back.
type Lifecycle struct {
	// PauseOnTimeout pauses it at the deadline instead of destroying it; PauseFilesOnly makes that a pause
	// of the disk alone.
	PauseOnTimeout bool `json:"pauseOnTimeout,omitempty"`
	PauseFilesOnly bool `json:"pauseFilesOnly,omitempty"`
	// ResumeOnTraffic is kept for the control plane, which sees the traffic.
	ResumeOnTraffic bool `json:"resumeOnTraffic,omitempty"`
}

// Outcome is what a pause or a resume came to.
type Outcome struct {
	Info Info
	// Resumed is false where the sandbox ran already and only got a deadline.
	Resumed bool
	// Phases are the act's parts in order.
	Phases []Stage
}

func (r CreateRequest) rules() egress.Rules {
	return egress.Rules{AllowInternet: r.AllowInternet, AllowOut: r.AllowOut, DenyOut: r.DenyOut}
}

// Info is a sandbox as it is now. It is a copy and safe to keep.
type Info struct {
	ID          string            `json:"id"`
	Template    string            `json:"template"`
	State       State             `json:"state"`
	Failure     string            `json:"failure,omitempty"`
	StartedAt   time.Time         `json:"startedAt"`
	Deadline    time.Time         `json:"deadline"`
	VCPUs       int               `json:"vcpus"`
	MemoryMiB   int               `json:"memoryMib"`
	DiskMiB     int               `json:"diskMib"`
	Slot        int               `json:"slot"`
	Address     netip.Addr        `json:"-"`
	BootPath    BootPath          `json:"bootPath"`
	Stages      []Stage           `json:"stages,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	EnvdVersion string            `json:"envdVersion,omitempty"`
	// Network is what it may reach, as its caller has written it.
	Network egress.Rules `json:"network"`
	// Limits are those in force.
	Limits    Limits    `json:"limits,omitzero"`
	Lifecycle Lifecycle `json:"lifecycle,omitzero"`
	// Generation counts the pauses: it is that of the snapshot that the sandbox was last paused into.
	Generation uint64 `json:"generation,omitempty"`
	// Snapshot is the named one that it was created from.
	Snapshot string    `json:"snapshot,omitempty"`
	PausedAt time.Time `json:"pausedAt,omitzero"`
}

func (i Info) clone() Info {
	i.Stages = slices.Clone(i.Stages)
	i.Metadata = maps.Clone(i.Metadata)
	i.Network = i.Network.Clone()
	return i
}
