package envdclient

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
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
	_, err = former.Init(ctx, InitRequest{AccessToken: &own, Resumed: true, Entropy: []byte("0123456789abcdef"), Hostname: "clone", MachineID: "0123456789abcdef0123456789abcdef"})
	require.NoError(t, err)
	require.ErrorAs(t, former.Thaw(ctx), &refused)
	require.NoError(t, newClient(t, port, func(c *Config) { c.AccessToken = own }).Thaw(ctx))
}

// TestS05_OneCallWakesTellsAndThaws: the content is made when the daemon has asked for it, and not before Ready.
func TestS05_OneCallWakesTellsAndThaws(t *testing.T) {
	port := freePort(t)
	startDaemon(t, port)
	c := newClient(t, port, nil)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	require.NoError(t, c.Freeze(ctx))
	token := "own"
	res, err := c.InitWhenReady(ctx, InitRequest{AccessToken: &token, Resumed: true, Thaw: true, Ready: func(context.Context) error {
		require.NoError(t, newClient(t, port, nil).Health(ctx))
		_, err := newClient(t, port, nil).Stat(ctx, "", "/")
		return err // no token is asked for yet
	}})
	require.NoError(t, err)
	assert.True(t, res.Thawed)
	_, err = c.Stat(ctx, "", "/")
	assert.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err))
}

// TestS05_ASlowAnswerIsNotCutByTheNextTry: two requests at once only keep a guest from answering either.
func TestS05_ASlowAnswerIsNotCutByTheNextTry(t *testing.T) {
	var calls atomic.Int32
	c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(4 * firstTry)
		w.WriteHeader(http.StatusNoContent)
	})
	ready := func(context.Context) error { time.Sleep(2 * firstTry); return nil }
	_, err := c.InitWhenReady(t.Context(), InitRequest{Resumed: true, Thaw: true, Ready: ready})
	require.NoError(t, err)
	assert.EqualValues(t, 1, calls.Load())
}

// TestS05_ATimestampOfUnknownAgeThawsNothing: a host that did not wait to be asked may have sent it long ago.
func TestS05_ATimestampOfUnknownAgeThawsNothing(t *testing.T) {
	for asks, want := range map[bool]string{true: `"wrennThaw":true`, false: ""} {
		content := make(chan string, 1)
		c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
			if !asks {
				time.Sleep(3 * time.Second / 2) // longer than it is held back
			}
			body, _ := io.ReadAll(r.Body)
			content <- string(body)
			w.WriteHeader(http.StatusNoContent)
		})
		res, err := c.InitWhenReady(t.Context(), InitRequest{Resumed: true, Thaw: true})
		require.NoError(t, err)
		assert.False(t, res.Thawed)
		if got := <-content; want == "" {
			assert.NotContains(t, got, "wrennThaw")
		} else {
			assert.Contains(t, got, want)
		}
	}
}
