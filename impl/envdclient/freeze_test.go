package envdclient

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestS05_FreezeAndThawByTheClient(t *testing.T) {
	port := freePort(t)
	startDaemon(t, port)
	c := newClient(t, port, nil)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	token := "former"
	_, err := c.InitWhenReady(ctx, InitRequest{AccessToken: &token})
	require.NoError(t, err)
	var refused *Error
	require.ErrorAs(t, c.Freeze(ctx), &refused, "without the token")
	assert.Equal(t, 401, refused.Status)
	former := newClient(t, port, func(c *Config) { c.AccessToken = token })
	require.NoError(t, former.Freeze(ctx))
	require.NoError(t, former.Freeze(ctx))
	// A clone's first call opens the daemon by the snapshot's token and gives it one of its own.
	own := "own"
	res, err := former.Init(ctx, InitRequest{AccessToken: &own, Resumed: true, Entropy: []byte("0123456789abcdef"), Hostname: "clone", MachineID: "0123456789abcdef0123456789abcdef"})
	require.NoError(t, err)
	assert.Less(t, res.ClockOffset.Abs(), time.Second, "it is the same clock")
	require.ErrorAs(t, former.Thaw(ctx), &refused)
	require.NoError(t, newClient(t, port, func(c *Config) { c.AccessToken = own }).Thaw(ctx))
}

func TestClockOffset(t *testing.T) {
	at := time.Unix(100, 0)
	assert.Equal(t, -3*time.Second, clockOffset("97000000000", at))
	assert.Zero(t, clockOffset("", at))
	assert.Zero(t, clockOffset("x", at))
}
