package sandbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
)

// slowChecks takes its time to find a memory damaged, and notes whether something is made of it.
type slowChecks struct {
	sandbox.Memory
	provided bool
}

var errDamaged = errors.New("boom")

func (c *slowChecks) Verify(context.Context, string, int) error {
	time.Sleep(50 * time.Millisecond) // in which others could be done
	return errDamaged
}

func (c *slowChecks) Provide(ctx context.Context, use sandbox.MemoryUse) (sandbox.MemorySource, error) {
	c.provided = true
	return c.Memory.Provide(ctx, use)
}

// TestS08_NothingThatLastsIsMadeBeforeTheChecks: neither a machine nor the file that later resumes take for the memory.
func TestS08_NothingThatLastsIsMadeBeforeTheChecks(t *testing.T) {
	h := sandboxtest.NewHost()
	cfg := config(t, h)
	checks := &slowChecks{Memory: cfg.Memory}
	cfg.Memory = checks
	m := newManager(t, cfg)
	create(t, m, "a")
	pause(t, m, "a")
	h.OnAct("vmm.restore", func() { assert.Fail(t, "a machine was made before the checks were over") })
	_, err := m.Resume(t.Context(), "a", time.Hour, false, false)
	require.ErrorIs(t, err, errDamaged)
	assert.False(t, checks.provided)
}
