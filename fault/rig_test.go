//go:build fault

package fault

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/agentclient"
	"wrenn/impl/need"
	"wrenn/impl/network"
	"wrenn/impl/step"
)

const (
	// callLimit bounds one call of the agent, a create with a cold boot by emulation included.
	callLimit = 3 * time.Minute
	// patience bounds each wait for what takes milliseconds on an idle machine; an emulated one is slow.
	patience = 30 * time.Second
)

// rig is a host with an agent that can be killed, and a neighbour that must not notice.
type rig struct {
	t      *testing.T
	host   *harness.Host
	cfg    harness.AgentConfig
	agent  *harness.Agent
	client *agentclient.Client
	faults string // the file that arms faults
	serial int

	// bare is the host before the first agent, empty with an agent and no sandbox, base with the neighbour.
	bare, empty, base harness.Census
	tables            string // the host's iptables before the first agent
	neighbour         agentclient.Sandbox
	traffic           *traffic

	withMemory bool // pauses are of memory too

	between func(*rig)      // done after a fault and before what clears up after it; nil for nothing
	seen    map[string]bool // "ACT/STEP" of every step that was traced
	logs    []string        // of the agent's lives since the row began
}

// newRig starts an agent whose VMM is procvmm, and a sandbox on it with which traffic goes on.
func newRig(t *testing.T, name string) *rig {
	need.Root(t)
	need.File(t, "kvm", "/dev/kvm", "the agent looks for it before it tries a Firecracker")
	return newRigWith(t, name, harness.AgentConfig{
		Image: smallImage(t), Flags: []string{"--vmm", "firecracker", "--firecracker", harness.Procvmm(t)},
	})
}

func newRigWith(t *testing.T, name string, cfg harness.AgentConfig) *rig {
	need.Root(t)
	need.Program(t, "ip", "iptables", "iptables-save", "unshare")
	r := &rig{t: t, host: harness.NewHost(t, name), cfg: cfg, seen: map[string]bool{}}
	plant(r.host)
	r.bare, r.tables = r.host.Take(), tables(r.host)
	delete(r.bare, "files") // the agent keeps its directory
	r.cfg.Program, r.cfg.Dir = program(t, "wrenn-agent"), harness.Dir(t)
	r.faults = filepath.Join(t.TempDir(), "faults")
	r.cfg.Env = append(r.cfg.Env, step.FaultEnv+"="+r.faults)
	r.cfg.Flags = append(r.cfg.Flags, "--ready-disks", "1", "--destroy-at-exit")
	r.start()
	r.empty = r.host.Take()
	r.neighbour = r.create()
	r.restart()
	r.clean(r.neighbour.ID)
	r.base = r.host.Take()
	r.traffic = r.talkTo(r.neighbour)
	return r
}

// start begins the agent's next life and waits until it serves.
func (r *rig) start() {
	r.t.Helper()
	require.NoError(r.t, r.tryStart(), "%s", r.agent.Log())
}

// tryStart is start where the agent may die on the way.
func (r *rig) tryStart() error {
	r.t.Helper()
	r.agent = r.host.LaunchAgent(r.cfg)
	r.agent.Mute()
	r.cfg = r.agent.AgentConfig
	if r.client != nil {
		r.client.Close()
	}
	var err error
	r.client, err = agentclient.New(agentclient.Config{
		Name: r.host.Name, URL: "http://" + r.cfg.Listen, Token: r.cfg.Token, Dial: r.host.DialContext,
	})
	require.NoError(r.t, err)
	return r.agent.AwaitReady()
}

// restart kills the agent and starts it again.
func (r *rig) restart() {
	r.t.Helper()
	r.agent.Kill()
	r.logs = append(r.logs, r.agent.Log())
	r.start()
}

// end ends the agent, and with it all sandboxes, in an orderly way, and asserts that the host is as it was
// before the first one. Tests defer it.
func (r *rig) end() {
	r.traffic.stop(r.t)
	if r.t.Failed() {
		return // how the agent ended says no more
	}
	r.agent.Stop()
	r.host.Same(r.bare)
	assert.Equal(r.t, r.tables, tables(r.host), "iptables are not what they were, byte for byte")
	var kept []string
	for _, name := range []string{"*", "*/*"} {
		found, err := filepath.Glob(filepath.Join(r.cfg.Dir, name))
		require.NoError(r.t, err)
		for _, path := range found {
			if path = strings.TrimPrefix(path, r.cfg.Dir+"/"); !strings.HasPrefix(path, "probes/") {
				kept = append(kept, path)
			}
		}
	}
	assert.Equal(r.t, []string{
		"disks", "probes", "sandboxes", "snapshots", "tmp", "disks/hashes.json", "snapshots/.gone", "snapshots/.new",
	}, kept, "the agent's directory has more in it")
}

// at is the rig as a subtest uses it.
func (r *rig) at(t *testing.T) *rig {
	here := *r
	here.t, here.logs = t, nil
	t.Cleanup(func() {
		if t.Failed() {
			here.logs = append(here.logs, here.agent.Log())
			harness.Artifact(t, "agent.log", []byte(strings.Join(here.logs, "\n--- its next life\n")))
		}
		here.t = r.t
		*r = here
	})
	return &here
}

// arm makes faults come, and forgets what came before.
func (r *rig) arm(lines ...string) {
	r.t.Helper()
	r.trace()
	require.NoError(r.t, os.RemoveAll(r.faults+step.FaultTrace))
	temporary := r.faults + ".new"
	require.NoError(r.t, os.WriteFile(temporary, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	require.NoError(r.t, os.Rename(temporary, r.faults))
}

// trace is what came to pass since the last arm.
func (r *rig) trace() []string {
	r.t.Helper()
	content, err := os.ReadFile(r.faults + step.FaultTrace)
	if !os.IsNotExist(err) {
		require.NoError(r.t, err)
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	for _, line := range lines {
		if where, _, ok := strings.Cut(line, " "); ok {
			r.seen[where] = true
		}
	}
	return lines
}

// fired asserts that the fault at a point has come.
func (r *rig) fired(p point) {
	r.t.Helper()
	require.Contains(r.t, r.trace(), p.where()+" "+p.kind, "the fault did not come")
}

// newID is the id of the next sandbox.
func (r *rig) newID() string {
	r.serial++
	return fmt.Sprintf("box%d", r.serial)
}

// tryCreate asks for a sandbox.
func (r *rig) tryCreate(id string) (agentclient.Sandbox, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	return r.client.Create(ctx, agentclient.CreateRequest{ID: id, Template: "base", Timeout: time.Hour})
}

// create makes a sandbox; it must succeed.
func (r *rig) create() agentclient.Sandbox {
	r.t.Helper()
	box, err := r.tryCreate(r.newID())
	require.NoError(r.t, err)
	return box
}

// tryDestroy destroys a sandbox.
func (r *rig) tryDestroy(id string) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	return r.client.Destroy(ctx, id)
}

// living are the sandboxes that the agent says run.
func (r *rig) living() (map[string]agentclient.Sandbox, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), callLimit)
	defer cancel()
	list, err := r.client.List(ctx)
	all := map[string]agentclient.Sandbox{}
	for _, box := range list {
		all[box.ID] = box
		if box.State != agentclient.StateRunning && err == nil {
			err = fmt.Errorf("sandbox %s is %s", box.ID, box.State)
		}
	}
	return all, err
}

// clean asserts that the agent soon has just these sandboxes, all running, and that the host has nothing
// beyond what they own.
func (r *rig) clean(ids ...string) {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(t *assert.CollectT) {
		living, err := r.living()
		require.NoError(t, err)
		got := make([]string, 0, len(living))
		for id := range living {
			got = append(got, id)
		}
		require.ElementsMatch(t, ids, got, "the agent's sandboxes")
		assert.Empty(t, leftovers(r.empty, r.host.Take(), living), "left on the host")
	}, patience, 20*time.Millisecond, "%s", r.agent.Name)
}

// address is where the host reaches the daemon of a sandbox.
func address(box agentclient.Sandbox) string {
	return netip.AddrPortFrom(network.Slot(box.Slot).HostIP(), envdPort).String()
}

// envdPort is where the daemon in a guest answers.
const envdPort = 49983
