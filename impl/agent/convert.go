package agent

import (
	"errors"
	"math"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn/impl/egress"
	"wrenn/impl/safename"
	"wrenn/impl/sandbox"
	"wrenn/impl/snapshot"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// codes is the one place where an error gets its code for the wire; the first match counts.
var codes = []struct {
	err  error
	code connect.Code
}{
	{sandbox.ErrInvalid, connect.CodeInvalidArgument},
	{safename.ErrInvalid, connect.CodeInvalidArgument},
	{sandbox.ErrNotFound, connect.CodeNotFound},
	{sandbox.ErrNoTemplate, connect.CodeNotFound},
	{sandbox.ErrNoSnapshot, connect.CodeNotFound},
	{sandbox.ErrExists, connect.CodeAlreadyExists},
	{sandbox.ErrSnapshotExists, connect.CodeAlreadyExists},
	{sandbox.ErrSnapshotUsed, connect.CodeFailedPrecondition},
	{snapshot.ErrDamaged, connect.CodeDataLoss},
	{sandbox.ErrConflict, connect.CodeFailedPrecondition},
	{sandbox.ErrNoSlot, connect.CodeResourceExhausted},
	{sandbox.ErrNoMemory, connect.CodeResourceExhausted},
	{sandbox.ErrNoDisk, connect.CodeResourceExhausted},
	{sandbox.ErrNoVMM, connect.CodeUnavailable},
	{sandbox.ErrClosed, connect.CodeUnavailable},
}

func toWireError(err error) error {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return connect.NewError(c.code, err)
		}
	}
	return connect.NewError(connect.CodeInternal, err)
}

var states = map[sandbox.State]hostagentv1.SandboxState{
	sandbox.Creating:   hostagentv1.SandboxState_SANDBOX_STATE_CREATING,
	sandbox.Running:    hostagentv1.SandboxState_SANDBOX_STATE_RUNNING,
	sandbox.Pausing:    hostagentv1.SandboxState_SANDBOX_STATE_PAUSING,
	sandbox.Paused:     hostagentv1.SandboxState_SANDBOX_STATE_PAUSED,
	sandbox.Resuming:   hostagentv1.SandboxState_SANDBOX_STATE_RESUMING,
	sandbox.Destroying: hostagentv1.SandboxState_SANDBOX_STATE_DESTROYING,
	sandbox.Gone:       hostagentv1.SandboxState_SANDBOX_STATE_GONE,
	sandbox.Failed:     hostagentv1.SandboxState_SANDBOX_STATE_FAILED,
}

var bootPaths = map[sandbox.BootPath]hostagentv1.BootPath{
	sandbox.Cold:     hostagentv1.BootPath_BOOT_PATH_COLD,
	sandbox.Restored: hostagentv1.BootPath_BOOT_PATH_RESTORED,
	sandbox.Warm:     hostagentv1.BootPath_BOOT_PATH_WARM,
}

// toWire: the casts are of numbers that CreateRequest's validation bounds. used is in bytes.
func toWire(i sandbox.Info, used int64) *hostagentv1.Sandbox {
	out := &hostagentv1.Sandbox{
		Id: i.ID, Template: i.Template, State: states[i.State], Failure: i.Failure,
		StartedAt: timestamppb.New(i.StartedAt), Deadline: timestamppb.New(i.Deadline),
		Vcpus: uint32(i.VCPUs), MemoryMib: uint64(i.MemoryMiB), DiskMib: uint64(i.DiskMiB), Slot: uint32(i.Slot),
		BootPath: bootPaths[i.BootPath], Metadata: i.Metadata, EnvdVersion: i.EnvdVersion,
		Network: &hostagentv1.NetworkRules{AllowInternet: i.Network.AllowInternet, AllowOut: i.Network.AllowOut, DenyOut: i.Network.DenyOut},
	}
	out.Stages = stagesToWire(i.Stages)
	out.Generation, out.Snapshot, out.DiskUsedBytes = i.Generation, i.Snapshot, uint64(used)
	out.Lifecycle = &hostagentv1.Lifecycle{
		PauseOnTimeout: i.Lifecycle.PauseOnTimeout, PauseFilesOnly: i.Lifecycle.PauseFilesOnly, ResumeOnTraffic: i.Lifecycle.ResumeOnTraffic,
	}
	if !i.PausedAt.IsZero() {
		out.PausedAt = timestamppb.New(i.PausedAt)
	}
	return out
}

func stagesToWire(stages []sandbox.Stage) []*hostagentv1.Stage {
	var out []*hostagentv1.Stage
	for _, s := range stages {
		out = append(out, &hostagentv1.Stage{Name: s.Name, Duration: durationpb.New(s.Duration)})
	}
	return out
}

func snapshotToWire(s sandbox.SnapshotInfo) *hostagentv1.Snapshot {
	return &hostagentv1.Snapshot{
		Name: s.Name, SandboxId: s.Sandbox, Template: s.Template, CreatedAt: timestamppb.New(s.CreatedAt), Vcpus: uint32(s.VCPUs),
		MemoryMib: uint64(s.MemoryMiB), DiskMib: uint64(s.DiskMiB), SizeBytes: uint64(s.SizeBytes), Users: uint32(s.Users),
	}
}

// fromWire clamps numbers that an int could not hold; the validation then refuses them.
func fromWire(r *hostagentv1.CreateSandboxRequest) sandbox.CreateRequest {
	const tooMuch = 1 << 30
	return sandbox.CreateRequest{
		ID: r.GetId(), Template: r.GetTemplate(), VCPUs: int(min(r.GetVcpus(), tooMuch)), MemoryMiB: int(min(r.GetMemoryMib(), tooMuch)),
		Timeout: timeoutFromWire(r.GetTimeout()), EnvVars: r.GetEnvVars(), Metadata: r.GetMetadata(),
		AccessToken: r.GetEnvdAccessToken(), AllowInternet: r.GetNetwork().GetAllowInternet(),
		AllowOut: r.GetNetwork().GetAllowOut(), DenyOut: r.GetNetwork().GetDenyOut(), Limits: limitsFromWire(r.GetLimits()),
		Snapshot: r.GetSnapshot(), DiskMiB: int(min(r.GetDiskMib(), tooMuch)),
		Lifecycle: sandbox.Lifecycle{
			PauseOnTimeout: r.GetLifecycle().GetPauseOnTimeout(), PauseFilesOnly: r.GetLifecycle().GetPauseFilesOnly(),
			ResumeOnTraffic: r.GetLifecycle().GetResumeOnTraffic(),
		},
	}
}

func rulesFromWire(r *hostagentv1.NetworkRules) egress.Rules {
	return egress.Rules{AllowInternet: r.GetAllowInternet(), AllowOut: r.GetAllowOut(), DenyOut: r.GetDenyOut()}
}

func limitsFromWire(l *hostagentv1.NetworkLimits) sandbox.Limits {
	clamp := func(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
	return sandbox.Limits{
		Egress:  sandbox.Limit{Rate: clamp(l.GetEgressBytesPerSecond()), Burst: clamp(l.GetEgressBurstBytes())},
		Ingress: sandbox.Limit{Rate: clamp(l.GetIngressBytesPerSecond()), Burst: clamp(l.GetIngressBurstBytes())},
	}
}

// timeoutFromWire turns an absent or invalid duration into 0, which the validation refuses.
func timeoutFromWire(d *durationpb.Duration) time.Duration {
	if d.CheckValid() != nil {
		return 0
	}
	return d.AsDuration()
}
