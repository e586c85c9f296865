package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// SnapshotType says which pages of the guest's memory a snapshot's file holds.
type SnapshotType string

// The types of a snapshot.
const (
	// SnapshotFull holds all memory; a hole of the file is zero.
	SnapshotFull SnapshotType = "Full"
	// SnapshotDiff holds the pages that may have changed since the load, the last snapshot, or the boot; a
	// hole is unchanged, and a page that the guest has zeroed is data. The first one of a machine that
	// booted can be loaded as it is.
	SnapshotDiff SnapshotType = "Diff"
)

// SnapshotCreate is the body of PUT /snapshot/create. Paths are the VMM's: relative ones start at
// LaunchConfig.Dir.
type SnapshotCreate struct {
	Type SnapshotType `json:"snapshot_type"`
	// StatePath is created or truncated.
	StatePath string `json:"snapshot_path"`
	// MemoryPath is created, or overwritten in place where it has the guest's size: it must not be a file
	// that another machine was loaded from.
	MemoryPath string `json:"mem_file_path"`
	// MemSizeMiB is the guest's memory, which the call's deadline grows with; it is not sent.
	MemSizeMiB int `json:"-"`
}

// BackendType says where the pages of a loaded machine come from.
type BackendType string

// The kinds of memory backend.
const (
	// BackendFile maps a memory file privately; the file is never written.
	BackendFile BackendType = "File"
	// BackendUffd asks a page server that listens on a Unix socket.
	BackendUffd BackendType = "Uffd"
)

// MemoryBackend is where a loaded machine gets its memory from.
type MemoryBackend struct {
	Type BackendType `json:"backend_type"`
	// Path is of the memory file or of the page server's socket.
	Path string `json:"backend_path"`
}

// NetworkOverride gives an interface of a snapshot another TAP than the one it was made with.
type NetworkOverride struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
}

// SnapshotLoad says what to load. Drives are opened at the very paths that the snapshot recorded.
type SnapshotLoad struct {
	// StatePath is of the state file of the last layer that Memory holds.
	StatePath string
	Memory    MemoryBackend
	// TrackDirtyPages makes later diff snapshots exact. It is not part of a snapshot, so it has to be
	// asked for at every load.
	TrackDirtyPages bool
	// ResumeVM lets the guest run at once; otherwise the machine is paused.
	ResumeVM bool
	// NetworkOverrides need Firecracker 1.12.
	NetworkOverrides []NetworkOverride
	// MemSizeMiB is the guest's memory, which the call's deadline grows with; it is not sent.
	MemSizeMiB int
}

// snapshotRate is the least speed, in MiB per second, at which memory is expected to reach or leave the
// disk: an eighth of the 125 MiB/s that a general-purpose cloud disk (EBS gp3) sustains at its base rate,
// since eight snapshots may be made at once. Firecracker syncs the file before it answers.
const snapshotRate = 16

// snapshotTimeout bounds a call that writes or reads a guest's whole memory, on top of what the call would
// take without any: 92 s for 512 MiB, 9.5 min for 8 GiB. The stand-in reads all of it at a load by Uffd and
// starts QEMU, which is why that fixed part is StartTimeout.
func snapshotTimeout(memSizeMiB int) time.Duration {
	return StartTimeout + time.Duration(memSizeMiB)*time.Second/snapshotRate
}

var errNoMemorySize = errors.New("the guest's memory size is not given, so there is no deadline")

// CreateSnapshot writes the state and the memory of a paused machine, and syncs both files (not their
// directory). The machine stays paused. After an error files may be left, and a Diff made later still
// holds everything since the last one that succeeded.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotCreate) error {
	if s.MemSizeMiB <= 0 {
		return fmt.Errorf("create a snapshot: %w", errNoMemorySize)
	}
	return c.call(ctx, snapshotTimeout(s.MemSizeMiB), http.MethodPut, "/snapshot/create", s, nil)
}

// LoadSnapshot makes the machine of a snapshot in a VMM that was given nothing yet; logger and metrics may
// be configured. A VMM that fails inside the load refuses and then exits with code 1; only a load after
// other configuration is refused by a VMM that lives on.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	if s.MemSizeMiB <= 0 {
		return fmt.Errorf("load a snapshot: %w", errNoMemorySize)
	}
	text, err := c.Version(ctx)
	if err != nil {
		return fmt.Errorf("load a snapshot: %w", err)
	}
	v, err := parseVersion(text)
	if err != nil {
		return fmt.Errorf("load a snapshot: %w", err)
	}
	body, err := s.body(v)
	if err != nil {
		return fmt.Errorf("load a snapshot: %w", err)
	}
	return c.call(ctx, snapshotTimeout(s.MemSizeMiB), http.MethodPut, "/snapshot/load", body, nil)
}

type snapshotLoadBody struct {
	StatePath           string            `json:"snapshot_path"`
	Memory              MemoryBackend     `json:"mem_backend"`
	TrackDirtyPages     bool              `json:"track_dirty_pages,omitempty"`
	EnableDiffSnapshots bool              `json:"enable_diff_snapshots,omitempty"`
	ResumeVM            bool              `json:"resume_vm,omitempty"`
	NetworkOverrides    []NetworkOverride `json:"network_overrides,omitempty"`
}

// ErrTooOld says that the VMM's version does not know what was asked of it.
var ErrTooOld = errors.New("the vmm is too old")

// body is what this version of Firecracker understands: it refuses a field that came later. Dirty pages
// got their present name with 1.13, overrides came with 1.12.
func (s SnapshotLoad) body(v version) (snapshotLoadBody, error) {
	b := snapshotLoadBody{StatePath: s.StatePath, Memory: s.Memory, ResumeVM: s.ResumeVM, NetworkOverrides: s.NetworkOverrides}
	if len(s.NetworkOverrides) > 0 && v.before(1, 12) {
		return b, fmt.Errorf("%w: %d.%d has no network overrides, which came with 1.12", ErrTooOld, v.major, v.minor)
	}
	if v.before(1, 13) {
		b.EnableDiffSnapshots = s.TrackDirtyPages
	} else {
		b.TrackDirtyPages = s.TrackDirtyPages
	}
	return b, nil
}

// version is what fields depend on; patches bring none.
type version struct{ major, minor int }

func (v version) before(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

// parseVersion reads "1.16.1" or "1.17.0-dev".
func parseVersion(text string) (version, error) {
	first, rest, _ := strings.Cut(text, ".")
	second, _, _ := strings.Cut(rest, ".")
	major, err := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(second)
	if err = errors.Join(err, err2); err != nil {
		return version{}, fmt.Errorf("version %q of the vmm: %w", text, err)
	}
	return version{major, minor}, nil
}
