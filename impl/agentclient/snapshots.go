package agentclient

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// Deadlines of the calls that write or read a machine's memory: 64 GiB, the most that a sandbox has, at the
// 250 MB/s of a slow disk take 270 s. A resume may boot a guest.
const (
	PauseTimeout    = 5 * time.Minute
	ResumeTimeout   = CreateTimeout
	SnapshotTimeout = PauseTimeout
)

// Lifecycle says what becomes of a sandbox at its deadline, and how it comes back.
type Lifecycle struct {
	// PauseOnTimeout: at the deadline it is paused, not destroyed; with PauseFilesOnly without its memory.
	PauseOnTimeout, PauseFilesOnly bool
	// ResumeOnTraffic: traffic to it resumes it.
	ResumeOnTraffic bool
}

// Snapshot is a sandbox's memory and disk as they were, under a name of the host's.
type Snapshot struct {
	Name string
	// SandboxID is of which sandbox it was taken, Template that one's template.
	SandboxID, Template string
	CreatedAt           time.Time
	VCPUs               uint32
	MemoryMiB, DiskMiB  uint64
	// SizeBytes is what it takes on the host.
	SizeBytes uint64
	// Users is how many sandboxes that were created from it are there.
	Users uint32
}

// ResumeRequest says how to resume. With ExtendOnly a sandbox that runs already keeps a later end; with
// FilesOnly a paused one boots anew from its disk.
type ResumeRequest struct {
	ID                    string
	Timeout               time.Duration
	ExtendOnly, FilesOnly bool
}

// Pause stops a running sandbox and keeps its memory and disk, with filesOnly its disk alone. It returns
// when that is durable, with the time of each phase. Errors: ErrNotFound, ErrConflict (it does not run),
// ErrExhausted (no room for it), ErrUnsupported, ErrUnreachable, ErrInternal; on an agent's own error the
// sandbox runs on.
func (c *Client) Pause(ctx context.Context, id string, filesOnly bool) (Sandbox, []Stage, error) {
	res, err := call(ctx, PauseTimeout, c.rpc.PauseSandbox, &hostagentv1.PauseSandboxRequest{Id: id, FilesOnly: filesOnly})
	if err != nil {
		return Sandbox{}, nil, c.fail("pause sandbox "+id, err)
	}
	return sandboxFromWire(res.GetSandbox()), stagesFromWire(res.GetPhases()), nil
}

// Resume lets a paused sandbox go on and returns when its daemon answers, with the time of each phase;
// resumed is false when it ran already. Errors are those of Pause; on an agent's own error it stays paused.
func (c *Client) Resume(ctx context.Context, r ResumeRequest) (sb Sandbox, resumed bool, phases []Stage, err error) {
	res, err := call(ctx, ResumeTimeout, c.rpc.ResumeSandbox, &hostagentv1.ResumeSandboxRequest{
		Id: r.ID, Timeout: durationpb.New(r.Timeout), ExtendOnly: r.ExtendOnly, FilesOnly: r.FilesOnly,
	})
	if err != nil {
		return Sandbox{}, false, nil, c.fail("resume sandbox "+r.ID, err)
	}
	return sandboxFromWire(res.GetSandbox()), res.GetResumed(), stagesFromWire(res.GetPhases()), nil
}

// Snapshot keeps a sandbox's memory and disk under a name, with the time of each phase; the sandbox goes
// on. Errors are those of Pause, and ErrExists (the name), ErrInvalid.
func (c *Client) Snapshot(ctx context.Context, id, name string) (Snapshot, []Stage, error) {
	res, err := call(ctx, SnapshotTimeout, c.rpc.SnapshotSandbox, &hostagentv1.SnapshotSandboxRequest{Id: id, Name: name})
	if err != nil {
		return Snapshot{}, nil, c.fail("take snapshot "+name+" of sandbox "+id, err)
	}
	return snapshotFromWire(res.GetSnapshot()), stagesFromWire(res.GetPhases()), nil
}

// Snapshots returns the host's snapshots.
func (c *Client) Snapshots(ctx context.Context) ([]Snapshot, error) {
	res, err := call(ctx, ReadTimeout, c.rpc.ListSnapshots, &hostagentv1.ListSnapshotsRequest{})
	if err != nil {
		return nil, c.fail("list snapshots", err)
	}
	all := make([]Snapshot, 0, len(res.GetSnapshots()))
	for _, s := range res.GetSnapshots() {
		all = append(all, snapshotFromWire(s))
	}
	return all, nil
}

// DeleteSnapshot removes a snapshot. Errors: ErrNotFound; ErrConflict while sandboxes that were created from
// it are there, unless force.
func (c *Client) DeleteSnapshot(ctx context.Context, name string, force bool) error {
	_, err := call(ctx, DestroyTimeout, c.rpc.DeleteSnapshot, &hostagentv1.DeleteSnapshotRequest{Name: name, Force: force})
	return c.fail("delete snapshot "+name, err)
}

func snapshotFromWire(s *hostagentv1.Snapshot) Snapshot {
	return Snapshot{
		Name: s.GetName(), SandboxID: s.GetSandboxId(), Template: s.GetTemplate(), CreatedAt: timeFromWire(s.GetCreatedAt()),
		VCPUs: s.GetVcpus(), MemoryMiB: s.GetMemoryMib(), DiskMiB: s.GetDiskMib(), SizeBytes: s.GetSizeBytes(), Users: s.GetUsers(),
	}
}

func stagesFromWire(stages []*hostagentv1.Stage) (out []Stage) {
	for _, s := range stages {
		out = append(out, Stage{Name: s.GetName(), Duration: s.GetDuration().AsDuration()})
	}
	return out
}
