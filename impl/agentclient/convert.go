package agentclient

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// State is a state of a sandbox's life, as agents report it.
type State string

// The states.
const (
	StateUnknown    State = "unknown"
	StateCreating   State = "creating"
	StateRunning    State = "running"
	StatePausing    State = "pausing"
	StatePaused     State = "paused"
	StateResuming   State = "resuming"
	StateDestroying State = "destroying"
	StateGone       State = "gone"
	StateFailed     State = "failed"
)

// Sandbox is what an agent says of a sandbox.
type Sandbox struct {
	ID, Template string
	State        State
	// Failure is why State is failed.
	Failure             string
	StartedAt, Deadline time.Time
	VCPUs               uint32
	MemoryMiB, DiskMiB  uint64
	// Slot is the host's index of the sandbox's network, 1 to 32767; 0 when it has none.
	Slot uint32
	// BootPath is "cold", "restored", "warm" or "unknown".
	BootPath    string
	Stages      []Stage
	Metadata    map[string]string
	EnvdVersion string
	// Network is nil where the agent does not say.
	Network *NetworkRules
	// PausedAt is when it was paused; zero where it was not.
	PausedAt time.Time
}

// NetworkRules say what a sandbox may reach, as its caller has written it.
type NetworkRules struct {
	AllowInternet     bool
	AllowOut, DenyOut []string
}

// NetworkLimits bound a sandbox's traffic in bytes per second and bytes. A rate of 0 is the host's own; a
// burst of 0 is half a second of the rate.
type NetworkLimits struct {
	EgressRate, EgressBurst, IngressRate, IngressBurst uint64
}

// Stage is the time that one part of a create took.
type Stage struct {
	Name     string
	Duration time.Duration
}

// Network is a slot in use: a sandbox's, or with an empty SandboxID one that is kept ready.
type Network struct {
	Slot      int
	SandboxID string
	State     State
}

// CreateRequest says what to make. Zero VCPUs or MemoryMiB mean the template's default. With Snapshot, one of
// the host's, Template, VCPUs and MemoryMiB stay empty.
type CreateRequest struct {
	ID, Template      string
	VCPUs             uint32
	MemoryMiB         uint64
	Timeout           time.Duration
	EnvVars, Metadata map[string]string
	EnvdAccessToken   string
	Network           NetworkRules
	Limits            NetworkLimits
	Snapshot          string
	Lifecycle         Lifecycle
}

// Host is what an agent says of its machine.
type Host struct {
	Version, VMM, VMMReason string
	Sandboxes               uint32
	Templates               []string
	CPUs                    uint32
	MemoryMiB               uint64
}

var states = map[hostagentv1.SandboxState]State{
	hostagentv1.SandboxState_SANDBOX_STATE_CREATING:   StateCreating,
	hostagentv1.SandboxState_SANDBOX_STATE_RUNNING:    StateRunning,
	hostagentv1.SandboxState_SANDBOX_STATE_PAUSING:    StatePausing,
	hostagentv1.SandboxState_SANDBOX_STATE_PAUSED:     StatePaused,
	hostagentv1.SandboxState_SANDBOX_STATE_RESUMING:   StateResuming,
	hostagentv1.SandboxState_SANDBOX_STATE_DESTROYING: StateDestroying,
	hostagentv1.SandboxState_SANDBOX_STATE_GONE:       StateGone,
	hostagentv1.SandboxState_SANDBOX_STATE_FAILED:     StateFailed,
}

var bootPaths = map[hostagentv1.BootPath]string{
	hostagentv1.BootPath_BOOT_PATH_COLD:     "cold",
	hostagentv1.BootPath_BOOT_PATH_RESTORED: "restored",
	hostagentv1.BootPath_BOOT_PATH_WARM:     "warm",
}

func sandboxFromWire(s *hostagentv1.Sandbox) Sandbox {
	out := Sandbox{
		ID: s.GetId(), Template: s.GetTemplate(), State: stateFromWire(s.GetState()), Failure: s.GetFailure(),
		StartedAt: timeFromWire(s.GetStartedAt()), Deadline: timeFromWire(s.GetDeadline()),
		VCPUs: s.GetVcpus(), MemoryMiB: s.GetMemoryMib(), DiskMiB: s.GetDiskMib(), Slot: s.GetSlot(),
		BootPath: bootPaths[s.GetBootPath()], Metadata: s.GetMetadata(), EnvdVersion: s.GetEnvdVersion(),
		PausedAt: timeFromWire(s.GetPausedAt()),
	}
	if n := s.GetNetwork(); n != nil {
		out.Network = &NetworkRules{AllowInternet: n.GetAllowInternet(), AllowOut: n.GetAllowOut(), DenyOut: n.GetDenyOut()}
	}
	if out.BootPath == "" {
		out.BootPath = "unknown"
	}
	out.Stages = stagesFromWire(s.GetStages())
	return out
}

func stateFromWire(s hostagentv1.SandboxState) State {
	if known, ok := states[s]; ok {
		return known
	}
	return StateUnknown
}

func createToWire(r CreateRequest) *hostagentv1.CreateSandboxRequest {
	return &hostagentv1.CreateSandboxRequest{
		Id: r.ID, Template: r.Template, Vcpus: r.VCPUs, MemoryMib: r.MemoryMiB, Timeout: durationpb.New(r.Timeout),
		EnvVars: r.EnvVars, Metadata: r.Metadata, EnvdAccessToken: r.EnvdAccessToken, Network: rulesToWire(r.Network),
		Limits: &hostagentv1.NetworkLimits{
			EgressBytesPerSecond: r.Limits.EgressRate, EgressBurstBytes: r.Limits.EgressBurst,
			IngressBytesPerSecond: r.Limits.IngressRate, IngressBurstBytes: r.Limits.IngressBurst,
		},
		Snapshot: r.Snapshot,
		Lifecycle: &hostagentv1.Lifecycle{
			PauseOnTimeout: r.Lifecycle.PauseOnTimeout, PauseFilesOnly: r.Lifecycle.PauseFilesOnly, ResumeOnTraffic: r.Lifecycle.ResumeOnTraffic,
		},
	}
}

func rulesToWire(r NetworkRules) *hostagentv1.NetworkRules {
	return &hostagentv1.NetworkRules{AllowInternet: r.AllowInternet, AllowOut: r.AllowOut, DenyOut: r.DenyOut}
}

func hostFromWire(p *hostagentv1.PingResponse) Host {
	return Host{
		Version: p.GetVersion(), VMM: p.GetVmm(), VMMReason: p.GetVmmReason(), Sandboxes: p.GetSandboxes(),
		Templates: p.GetTemplates(), CPUs: p.GetCpus(), MemoryMiB: p.GetMemoryMib(),
	}
}

// timeFromWire turns an absent time into the zero time.
func timeFromWire(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
