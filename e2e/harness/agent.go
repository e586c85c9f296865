package harness

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// AgentConfig says how to start an agent. The zero value of a field takes what is in the comment.
type AgentConfig struct {
	// Program is its path: what `make build` has built.
	Program string
	// Image is the directory of kernel and templates: what `make image` has built.
	Image string
	// Dir keeps its files: a new directory that goes away with the test.
	Dir string
	// Listen is its address on the host: 127.0.0.1:3003.
	Listen string
	// Token is what its callers present: "token-of-" and the host's name.
	Token string
	// Env are further variables, and Flags further flags.
	Env, Flags []string
}

// Agent is `wrenn-agent` on a Host.
type Agent struct {
	*Process
	AgentConfig
}

// StartAgent starts an agent and waits until it serves.
func (h *Host) StartAgent(cfg AgentConfig) *Agent {
	h.tb.Helper()
	a := h.LaunchAgent(cfg)
	require.NoError(h.tb, a.AwaitReady(), "%s", a.Log())
	return a
}

// LaunchAgent starts an agent. Calling it again with the AgentConfig of one that has ended makes a next life
// of the same agent.
func (h *Host) LaunchAgent(cfg AgentConfig) *Agent {
	h.tb.Helper()
	if cfg.Program == "" {
		cfg.Program = need.File(h.tb, "build", Build(h.tb, "bin/wrenn-agent"), "run `make build`")
	}
	if cfg.Image == "" {
		need.File(h.tb, "image", Build(h.tb, "image/templates/base/rootfs.ext4"), "run `make image`")
		cfg.Image = Build(h.tb, "image")
	}
	if cfg.Dir == "" {
		cfg.Dir = Dir(h.tb)
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:3003"
	}
	if cfg.Token == "" {
		cfg.Token = "token-of-" + h.Name
	}
	knowProbes(h.tb, cfg.Dir)
	temporary := filepath.Join(cfg.Dir, "tmp")
	require.NoError(h.tb, os.MkdirAll(temporary, 0o700))
	// Ready networks come and go by themselves; without them a census knows what has to be there.
	args := append([]string{"--ready-networks", "0", "--dir", cfg.Dir, "--agent-listen", cfg.Listen, "--image-dir", cfg.Image, "--boot-timeout", bootTimeout}, cfg.Flags...)
	cmd := exec.Command(cfg.Program, args...)
	cmd.Env = append(append(os.Environ(), "TMPDIR="+temporary, "WRENN_AGENT_TOKEN="+cfg.Token), cfg.Env...)
	a := &Agent{AgentConfig: cfg, Process: h.start(h.tb, "agent on "+h.Name, cmd)}
	if h.keepsFilesIn(cfg.Dir) {
		h.tb.Cleanup(func() { fileConsoles(h.tb, cfg.Dir) })
	}
	return a
}

// errEnded is AwaitReady's for an agent that has ended.
var errEnded = errors.New("the agent has ended")

// AwaitReady waits until it serves; it returns an error when it ends instead, or takes longer than Patience.
func (a *Agent) AwaitReady() error {
	deadline := time.Now().Add(Patience)
	for !strings.Contains(a.Log(), "agent listens") {
		select {
		case <-a.Done():
			return errEnded
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.New("the agent does not serve")
		}
	}
	keepProbes(a.tb, a.Dir)
	return nil
}
