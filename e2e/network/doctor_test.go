package network_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/netns"
	"wrenn/impl/network"
)

// wrenn runs the command line as root does beside, or without, `wrenn up`.
func wrenn(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Root(t), "build/bin/wrenn"), args...)
	cmd.Env = append(append(os.Environ(), "WRENN_DIR="+dir), env...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// stock is the JSON of `wrenn doctor --network`.
type stock struct {
	Agent   string `json:"agent"`
	Objects []struct {
		Slot                      int
		Kind, Name, Role, Sandbox string
	} `json:"objects"`
	Orphans []int    `json:"orphans"`
	Notes   []string `json:"notes"`
}

func doctor(t *testing.T, dir string, env ...string) (s stock, code int) {
	t.Helper()
	out, errOut, code := wrenn(t, dir, env, "doctor", "--network", "--json")
	require.NoError(t, json.Unmarshal([]byte(out), &s), "%s%s", out, errOut)
	return s, code
}

// kinds lists the kinds of objects with a role and an owner, each slot's in order of kind.
func (s stock) kinds(role, sandbox string) (kinds []string, slots []int) {
	for _, o := range s.Objects {
		if o.Role == role && o.Sandbox == sandbox {
			kinds = append(kinds, o.Kind)
			if !slices.Contains(slots, o.Slot) {
				slots = append(slots, o.Slot)
			}
		}
	}
	slices.Sort(kinds)
	return kinds, slots
}

var (
	wholeNetwork = []string{"netns", "nft table", "nft table", "route", "tap", "veth"}
	hostsRules   = []string{"chain", "chain", "chain", "chain"}
)

// withReady waits until the agent says that it keeps n networks ready.
func withReady(t *testing.T, dir string, n int) stock {
	t.Helper()
	var s stock
	require.Eventually(t, func() bool {
		s, _ = doctor(t, dir)
		kinds, slots := s.kinds("ready", "")
		return len(slots) == n && len(kinds) == n*(len(wholeNetwork)-1) // the policy comes with the sandbox
	}, harness.Patience, 50*time.Millisecond)
	return s
}

func TestN06_DoctorAndReclaimBesideAnAgent(t *testing.T) {
	before := harness.Take(t)
	dir := harness.Dir(t)
	s := start(t, dir, "--ready-networks", "2")
	box := s.Create()
	found := withReady(t, dir, 2)
	assert.Equal(t, "answers", found.Agent)
	kinds, slots := found.kinds("sandbox", box.SandboxID)
	assert.Equal(t, wholeNetwork, kinds)
	assert.Len(t, slots, 1)
	kinds, _ = found.kinds("host", "")
	assert.Equal(t, hostsRules, kinds)
	assert.Empty(t, found.Orphans)
	out, _, code := wrenn(t, dir, nil, "doctor", "--network")
	assert.Zero(t, code)
	assert.Contains(t, out, "sandbox "+box.SandboxID+" (running)")
	assert.Contains(t, out, "1 of sandboxes, 2 ready, 0 orphaned")
	out, _, code = wrenn(t, dir, nil, "reclaim")
	assert.Equal(t, "nothing to reclaim\n", out)
	assert.Zero(t, code)

	// A whole one, the first half of a namespace, a route, and what only looks like ours.
	whole := harness.Take(t)
	require.NoError(t, plantOne(777))
	require.NoError(t, os.WriteFile(filepath.Join(netns.Dir, network.Slot(778).Netns()), nil, 0))
	shell(t, "ip route add 10.11.3.11/32 dev lo proto 217; ip netns add wrenn-ns-abc")
	found, code = doctor(t, dir)
	assert.Equal(t, []int{777, 778, 779}, found.Orphans)
	assert.Equal(t, 1, code)
	kinds, _ = found.kinds("orphan", "")
	assert.Equal(t, []string{"netns", "netns", "route", "route", "veth"}, kinds)
	planted := harness.Take(t)
	out, _, code = wrenn(t, dir, nil, "reclaim")
	assert.Contains(t, out, "wrenn-ns-777")
	assert.Contains(t, out, "nothing was changed")
	assert.NotContains(t, out, box.SandboxID)
	assert.Zero(t, code)
	planted.Same(t)

	// Who does not know the agent's token can neither tell nor clear.
	found, _ = doctor(t, dir, "WRENN_AGENT_TOKEN=wrong")
	assert.Equal(t, "does not answer", found.Agent)
	assert.Empty(t, found.Orphans, "they may be the agent's ready networks")
	kinds, _ = found.kinds("sandbox", box.SandboxID)
	assert.Equal(t, wholeNetwork, kinds, "the journal says so")
	_, errOut, code := wrenn(t, dir, []string{"WRENN_AGENT_TOKEN=wrong"}, "reclaim", "--yes")
	assert.Contains(t, errOut, "cannot be asked")
	assert.Equal(t, 1, code)
	planted.Same(t)

	out, errOut, code = wrenn(t, dir, nil, "reclaim", "--yes")
	assert.Equal(t, "networks removed: 3\n", out)
	require.Zero(t, code, errOut)
	shell(t, "ip netns del wrenn-ns-abc") // which is still there
	whole.Same(t)
	assert.Equal(t, "ok\n", s.Exec(box, "echo", "ok"))
	withReady(t, dir, 2)
	s.Stop()
	before.Same(t)
}

func TestN06_DoctorAndReclaimWithoutAnAgent(t *testing.T) {
	before := harness.Take(t)
	dir := harness.Dir(t)
	s := start(t, dir, "--ready-networks", "3")
	box := s.Create()
	withReady(t, dir, 3)
	s.Kill()

	found, code := doctor(t, dir)
	assert.Equal(t, "does not run", found.Agent)
	kinds, slots := found.kinds("sandbox", box.SandboxID)
	assert.Equal(t, wholeNetwork, kinds)
	assert.Len(t, found.Orphans, 3, "the pool of an agent that is gone")
	assert.NotContains(t, found.Orphans, slots[0])
	assert.Equal(t, 1, code)

	// A sandbox that nobody can say the slot of keeps everything as it is.
	left := harness.Take(t)
	broken := filepath.Join(dir, "agent/sandboxes/torn")
	require.NoError(t, os.Mkdir(broken, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(broken, "journal"), []byte("{"), 0o600))
	found, _ = doctor(t, dir)
	assert.Empty(t, found.Orphans)
	_, errOut, code := wrenn(t, dir, nil, "reclaim", "--yes")
	assert.Contains(t, errOut, "torn")
	assert.Equal(t, 1, code)
	_, errOut, code = wrenn(t, harness.Dir(t), nil, "reclaim", "--yes")
	assert.Contains(t, errOut, dir, "sandboxes of an agent with another directory are left")
	assert.Equal(t, 1, code)
	left.Same(t)
	require.NoError(t, os.RemoveAll(broken))

	out, errOut, code := wrenn(t, dir, nil, "reclaim", "--yes")
	assert.Equal(t, "networks removed: 3\n", out)
	require.Zero(t, code, errOut)
	found, code = doctor(t, dir)
	assert.Zero(t, code)
	kinds, _ = found.kinds("sandbox", box.SandboxID)
	assert.Equal(t, wholeNetwork, kinds)
	kinds, _ = found.kinds("host", "")
	assert.Equal(t, hostsRules, kinds, "the sandbox needs them")

	s = start(t, dir)
	assert.Equal(t, "ok\n", s.Exec(box, "echo", "ok"))
	s.Kill()
	require.NoError(t, os.Rename(filepath.Join(dir, "agent/sandboxes"), filepath.Join(dir, "lost")))
	killVMMs(t)
	out, errOut, code = wrenn(t, dir, nil, "reclaim", "--yes", "--json")
	require.Zero(t, code, errOut)
	assert.JSONEq(t, `{"slots":[`+jsonOf(t, slots[0])+`],"host":true}`, out)
	before.Same(t)
}

// killVMMs ends the guests whose agent is gone.
func killVMMs(t *testing.T) {
	t.Helper()
	program := harness.Procvmm(t)
	found, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	for _, exe := range found {
		if target, err := os.Readlink(exe); err == nil && target == program {
			shell(t, "kill -9 "+filepath.Base(filepath.Dir(exe))+" || true")
		}
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	require.NoError(t, err)
	return string(data)
}
