package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
	"wrenn/impl/sandbox"
	"wrenn/impl/uffd"
)

// TestS10_AMachineThatLosesItsPageServerFails, at once and not at the next page that is missing; also where
// a former life of the agent has started the two.
func TestS10_AMachineThatLosesItsPageServerFails(t *testing.T) {
	need.Root(t)
	need.Program(t, "qemu-system-x86_64", "iptables", "ip", "unshare")
	need.Short(t, "it boots a guest")
	need.File(t, "userfaultfd", "/dev/userfaultfd", "a kernel of 6.1 or later")
	image := imageDir(t)
	binary, err := standIn()
	require.NoError(t, err)
	g := realGround(t, image, binary, BackendUffd)
	before := g.Census(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*g.Patience)
	defer cancel()
	m, err := sandbox.NewManager(g.Config)
	require.NoError(t, err)
	_, err = m.Create(ctx, sandbox.CreateRequest{ID: "one", Template: "base", Timeout: time.Hour, AccessToken: "secret"})
	require.NoError(t, err)
	_, err = m.Pause(ctx, "one", false)
	require.NoError(t, err)
	_, err = m.Resume(ctx, "one", time.Hour, false, false)
	require.NoError(t, err)

	require.NoError(t, m.Close(ctx, false))
	g.Restart()
	m, err = sandbox.NewManager(g.Config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close(context.WithoutCancel(t.Context()), true)) })
	finish, err := m.Recover()
	require.NoError(t, err)
	_, err = finish(ctx)
	require.NoError(t, err)
	info, err := m.Get("one")
	require.NoError(t, err)
	require.Equal(t, sandbox.Running, info.State)

	data, err := os.ReadFile(filepath.Join(g.Config.Dir, "one", pagerRecord))
	require.NoError(t, err)
	var id uffd.Identity
	require.NoError(t, json.Unmarshal(data, &id))
	require.NoError(t, syscall.Kill(id.PID, syscall.SIGKILL))
	require.Eventually(t, func() bool {
		info, err := m.Get("one")
		return err == nil && info.State == sandbox.Failed && info.Slot == 0
	}, g.Patience, 10*time.Millisecond, "it runs on without its page server")
	assert.Equal(t, before, g.Census(t))
	assert.NoFileExists(t, filepath.Join(g.Config.Dir, "one", pagerRecord))
}
