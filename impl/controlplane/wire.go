package controlplane

import (
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// clientID fills a field that the contract demands and nobody reads any more.
const clientID = "wrenn"

// newSandbox is the body of a create.
type newSandbox struct {
	TemplateID      string            `json:"templateID"`
	Timeout         *int64            `json:"timeout"`
	Metadata        map[string]string `json:"metadata"`
	EnvVars         map[string]string `json:"envVars"`
	AllowInternet   *bool             `json:"allow_internet_access"`
	CPUCount        uint32            `json:"cpuCount"`
	MemoryMB        uint64            `json:"memoryMB"`
	AutoPause       bool              `json:"autoPause"`
	AutoPauseMemory *bool             `json:"autoPauseMemory"`
	AutoResume      struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`
	Network      networkBody    `json:"network"`
	Wrenn        limitsBody     `json:"wrenn"`
	MCP          map[string]any `json:"mcp"`
	IAM          map[string]any `json:"iam"`
	VolumeMounts []any          `json:"volumeMounts"`
}

// sandboxReply is what a create and a connect return.
type sandboxReply struct {
	TemplateID         string      `json:"templateID"`
	SandboxID          string      `json:"sandboxID"`
	ClientID           string      `json:"clientID"`
	Alias              string      `json:"alias"`
	EnvdVersion        string      `json:"envdVersion"`
	EnvdAccessToken    string      `json:"envdAccessToken"`
	TrafficAccessToken string      `json:"trafficAccessToken"`
	Domain             *string     `json:"domain"`
	Wrenn              *bootReport `json:"wrenn,omitempty"`
}

// bootReport says how a sandbox came up, and how long each part of that took.
type bootReport struct {
	BootPath string      `json:"bootPath"`
	Stages   []bootStage `json:"stages"`
	TotalMs  float64     `json:"totalMs"`
}

type bootStage struct {
	Name string  `json:"name"`
	Ms   float64 `json:"ms"`
}

// listedSandbox is an entry of a list.
type listedSandbox struct {
	TemplateID   string            `json:"templateID"`
	SandboxID    string            `json:"sandboxID"`
	ClientID     string            `json:"clientID"`
	Alias        string            `json:"alias"`
	StartedAt    time.Time         `json:"startedAt"`
	EndAt        time.Time         `json:"endAt"`
	CPUCount     uint32            `json:"cpuCount"`
	MemoryMB     uint64            `json:"memoryMB"`
	DiskSizeMB   uint64            `json:"diskSizeMB"`
	Metadata     map[string]string `json:"metadata"`
	State        store.State       `json:"state"`
	EnvdVersion  string            `json:"envdVersion"`
	VolumeMounts []struct{}        `json:"volumeMounts"`
}

// sandboxDetail describes one sandbox.
type sandboxDetail struct {
	listedSandbox
	Domain        *string      `json:"domain"`
	AllowInternet bool         `json:"allowInternetAccess"`
	Network       networkReply `json:"network"`
	Lifecycle     lifecycle    `json:"lifecycle"`
}

type lifecycle struct {
	OnTimeout  string `json:"onTimeout"`
	AutoResume bool   `json:"autoResume"`
}

// What becomes of a sandbox at its end, in the store as on the wire.
const (
	onTimeoutKill  = "kill"
	onTimeoutPause = "pause"
)

func lifecycleOf(sb store.Sandbox) agentclient.Lifecycle {
	return agentclient.Lifecycle{PauseOnTimeout: sb.OnTimeout == onTimeoutPause, PauseFilesOnly: sb.PauseFilesOnly, ResumeOnTraffic: sb.AutoResume}
}

func (s *server) domain() *string {
	if s.cfg.Domain == "" {
		return nil
	}
	return &s.cfg.Domain
}

func (s *server) reply(sb store.Sandbox) sandboxReply {
	return sandboxReply{
		TemplateID: sb.Template, SandboxID: sb.ID, ClientID: clientID, Alias: sb.Template, EnvdVersion: sb.EnvdVersion,
		EnvdAccessToken: s.envdToken(sb.ID), TrafficAccessToken: s.trafficToken(sb.ID), Domain: s.domain(),
	}
}

func listed(sb store.Sandbox) listedSandbox {
	if sb.Metadata == nil {
		sb.Metadata = map[string]string{}
	}
	return listedSandbox{
		TemplateID: sb.Template, SandboxID: sb.ID, ClientID: clientID, Alias: sb.Template,
		StartedAt: sb.StartedAt, EndAt: sb.EndAt, CPUCount: sb.VCPUs, MemoryMB: sb.MemoryMiB, DiskSizeMB: sb.DiskMiB,
		Metadata: sb.Metadata, State: sb.State, EnvdVersion: sb.EnvdVersion, VolumeMounts: []struct{}{},
	}
}

func report(bootPath string, stages []agentclient.Stage, total time.Duration) *bootReport {
	r := &bootReport{BootPath: bootPath, Stages: []bootStage{}, TotalMs: milliseconds(total)}
	for _, st := range stages {
		r.Stages = append(r.Stages, bootStage{Name: st.Name, Ms: milliseconds(st.Duration)})
	}
	return r
}

// milliseconds keeps three digits after the point: a microsecond is as fine as any stage is measured.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
