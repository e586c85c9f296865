package cli

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agent"
)

// object is one of slot, as it is before anybody is found to have it.
func object(slot int) agent.NetworkObject {
	return agent.NetworkObject{Slot: slot, Kind: "netns", Name: "n", Role: agent.RoleOrphan}
}

func TestN06_AnObjectIsAnOrphanOnlyWhereAllOwnersAreKnown(t *testing.T) {
	chain := agent.NetworkObject{Kind: "chain", Name: "filter WRENN-INPUT", Role: agent.RoleHost}
	mine := map[int]agent.Owner{1: {Sandbox: "abc", State: "running"}}
	for _, c := range []struct {
		name          string
		stock         stock
		before, after map[int]agent.Owner
		asked         error
		object        agent.NetworkObject
		role          string
	}{
		{"nobody has it", stock{Agent: agentAnswers}, mine, mine, nil, object(2), agent.RoleOrphan},
		{"its sandbox came meanwhile", stock{Agent: agentAnswers}, nil, mine, nil, object(1), agent.RoleSandbox},
		{"it was made ready meanwhile", stock{Agent: agentAnswers}, nil, map[int]agent.Owner{3: {Ready: true}}, nil, object(3), agent.RoleReady},
		{"the agent is mute", stock{Agent: agentIsMute}, mine, mine, errors.New("no token"), object(2), agent.RoleUnknown},
		{"a journal is torn", stock{Agent: agentIsOff, Notes: []string{"torn"}}, mine, mine, nil, object(2), agent.RoleUnknown},
		{"rules that sandboxes need", stock{Agent: agentIsOff}, mine, mine, nil, chain, agent.RoleHost},
		{"rules that an agent needs", stock{Agent: agentAnswers}, nil, nil, nil, chain, agent.RoleHost},
		{"rules that nobody needs", stock{Agent: agentIsOff}, nil, nil, nil, chain, agent.RoleOrphan},
		{"rules that somebody may need", stock{Agent: agentIsOff, Notes: []string{"torn"}}, nil, nil, nil, chain, agent.RoleHost},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.stock.judge([]agent.NetworkObject{c.object}, c.before, c.after, c.asked)
			assert.Equal(t, c.role, c.stock.Objects[0].Role)
			assert.Equal(t, c.role == agent.RoleOrphan && c.object.Slot != 0, len(c.stock.Orphans) == 1)
			var out bytes.Buffer
			require.NoError(t, c.stock.print(&out))
			assert.Equal(t, c.role == agent.RoleOrphan, bytes.Contains(out.Bytes(), []byte("ORPHAN")), out.String())
		})
	}
}
