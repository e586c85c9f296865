package e2e_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
)

// TestF01_AnAgentOfSeveralIsKilledAndComesBack has a control plane with two agents, all on hosts of their own.
func TestF01_AnAgentOfSeveralIsKilledAndComesBack(t *testing.T) {
	machine := harness.Take(t)
	c := harness.StartCluster(t, 2, "--destroy-at-exit")
	idle := []harness.Census{c.Nodes[0].Take(), c.Nodes[1].Take()}

	// A new sandbox goes to the host with the fewest.
	one, two := c.Create(), c.Create()
	for i, node := range c.Nodes {
		assert.Len(t, node.Take()["vmms"], 1, "the sandboxes are not spread: host %d", i)
	}
	assert.Equal(t, "one\n", c.Exec(one, "echo", "one"))
	assert.Equal(t, "two\n", c.Exec(two, "echo", "two"))

	running := c.Nodes[0].Take()
	c.Nodes[0].Agent.Kill()
	assert.Equal(t, "two\n", c.Exec(two, "echo", "two"), "the other host's sandbox is affected")
	third := c.Create()
	assert.Equal(t, "third\n", c.Exec(third, "echo", "third"), "a create does not avoid the host that is down")
	c.Nodes[0].Restart()
	c.Nodes[0].Same(running)
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		out, err := c.TryExec(one, "echo", "one")
		require.NoError(ct, err)
		assert.Equal(ct, "one\n", out)
	}, harness.Patience, 100*time.Millisecond)
	list, err := c.Client.List(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, list, 3, "a sandbox was lost with its agent")

	for _, box := range list {
		require.NoError(t, c.Client.Kill(t.Context(), box.SandboxID))
	}
	for i, node := range c.Nodes {
		node.Same(idle[i])
		node.Agent.Stop()
		end := node.Take()
		for _, kind := range []string{"netns", "iptables", "run", "vmms", "processes", "sockets", "loops"} {
			assert.Empty(t, end[kind], "%s are left on host %d", kind, i)
		}
		assert.Equal(t, machine["forward"], end["forward"], "host %d, which began as the machine was", i)
	}
	c.ControlPlane.Stop()
	machine.Same(t)
}
