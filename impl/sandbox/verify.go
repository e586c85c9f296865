package sandbox

import (
	"context"
	"errors"
	"fmt"

	"wrenn/impl/snapshot"
)

// checks is the comparison of a snapshot with all its checksums, beside what is made of it meanwhile. That is all
// thrown away if one is wrong, and before all were found right nothing of the sandbox's users runs.
type checks struct {
	// failed ends when something was found wrong, done when the comparison is over, with err as its outcome.
	failed context.Context //nolint:containedctx // it is what ends the steps beside
	done   chan struct{}
	err    error
	stop   context.CancelFunc
}

// check begins the comparison.
func (m *Manager) check(s *owned, from *origin) *checks {
	ctx, stop := context.WithCancel(context.Background())
	failed, fail := context.WithCancel(context.Background())
	c := &checks{failed: failed, done: make(chan struct{}), stop: stop}
	dir, manifest, filesOnly := from.dir, s.source, from.filesOnly
	go func() {
		defer close(c.done)
		err := snapshot.Verify(ctx, dir, manifest, &m.disks)
		if err == nil && !filesOnly {
			err = m.cfg.Memory.Verify(ctx, dir, manifest.Layers)
		}
		if err != nil {
			c.err = fmt.Errorf("verify: %w", err)
			fail()
		}
	}()
	return c
}

// end gives the comparison up, if it is not over, and waits for its end. The memory that was made flat meanwhile may be
// wrong, and would be taken for right once its layers have been mended.
func (c *checks) end(s *owned, m *Manager, from *origin) error {
	if c == nil {
		return nil
	}
	c.stop()
	<-c.done
	if c.err == nil {
		return nil
	}
	err := dropFlat(m.dir(s.now.ID))
	if errors.Is(c.err, snapshot.ErrDamaged) { // else it may be about to be used for others
		err = errors.Join(err, dropFlat(from.dir))
	}
	return err
}

// wait returns the outcome.
func (c *checks) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beside performs a step on what is being compared. It ends as soon as something was found wrong. If it fails by
// itself, the cause may be in the snapshot, which is then what to tell.
func (c *checks) beside(ctx context.Context, do func(context.Context) error) error {
	during, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.failed, cancel)()
	err := do(during)
	if err == nil || ctx.Err() != nil {
		return err
	}
	damage := c.wait(ctx)
	if damage != nil && errors.Is(err, context.Canceled) {
		return damage
	}
	return errors.Join(err, damage)
}
