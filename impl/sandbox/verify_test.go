package sandbox_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/snapshot"
)

// slowChecks takes its time to find a memory damaged.
type slowChecks struct{ sandbox.Memory }

var errDamaged = errors.New("boom")

func (slowChecks) Verify(context.Context, string, int) error {
	time.Sleep(50 * time.Millisecond) // in which others can be done
	return errDamaged
}

// deafGuest does not answer a first call of which it is told that it brings the clock: that of a resume.
type deafGuest struct{ sandbox.Guest }

func (g deafGuest) Init(ctx context.Context, addr netip.Addr, init sandbox.GuestInit, died <-chan struct{}) (sandbox.BootReport, error) {
	if !init.SetClock {
		return g.Guest.Init(ctx, addr, init, died)
	}
	<-ctx.Done()
	return sandbox.BootReport{}, ctx.Err()
}

// TestS08_NothingOfAUserRunsBeforeTheChecks: a machine may be there, but its processes stand still until all
// checksums were right.
func TestS08_NothingOfAUserRunsBeforeTheChecks(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	cfg.Memory = slowChecks{cfg.Memory}
	m := newManager(t, cfg)
	create(t, m, "a")
	pause(t, m, "a")
	h.OnAct("guest.init", func() { assert.Fail(t, "the guest was told to go on before the checks were over") })
	h.OnAct("guest.thaw", func() { assert.Fail(t, "a user's processes ran before the checks were over") })
	_, err := m.Resume(t.Context(), "a", time.Hour, false, false)
	require.ErrorIs(t, err, errDamaged)
	info, err := m.Get("a")
	require.NoError(t, err)
	assert.Equal(t, sandbox.Paused, info.State)
	assert.Empty(t, h.Census())
	// Once the layers are mended, it would be taken for what they hold.
	assert.NoFileExists(t, filepath.Join(cfg.Dir, "a", snapshot.FlatName))
}

// TestS08_ADamagedSnapshotIsNotWaitedFor: what was found wrong ends a resume whose guest does not answer, and is told
// instead of what it has led to.
func TestS08_ADamagedSnapshotIsNotWaitedFor(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	cfg.Memory, cfg.Guest = slowChecks{cfg.Memory}, deafGuest{cfg.Guest}
	m := newManager(t, cfg)
	create(t, m, "a")
	pause(t, m, "a")
	_, err := m.Resume(t.Context(), "a", time.Hour, false, false)
	require.ErrorIs(t, err, errDamaged)
	require.NotErrorIs(t, err, context.Canceled)
	assert.Empty(t, h.Census())
}
