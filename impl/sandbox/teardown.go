package sandbox

import (
	"context"
	"fmt"
	"os"
	"time"

	"wrenn/impl/step"
)

// end takes a sandbox down to nothing and forgets it. When something could not be removed, the
// sandbox stays in the table as destroying and end may be repeated.
func (m *Manager) end(s *owned) error {
	s.stopMerge()
	s.become(Destroying)
	ctx, cancel := context.WithTimeout(context.Background(), teardownTimeout)
	defer cancel()
	m.cfg.OnEnd(s.now.ID)
	if err := m.teardown(ctx, s); err != nil {
		m.cfg.Logger.Error("sandbox is not wholly gone", "sandbox", s.now.ID, "error", err)
		s.retry()
		return err
	}
	s.become(Gone)
	m.forget(s)
	close(s.gone)
	m.cfg.Logger.Info("sandbox is gone", "sandbox", s.now.ID)
	return nil
}

func (m *Manager) teardown(ctx context.Context, s *owned) error {
	err := step.RunAll(ctx, DestroyAct, m.teardownSteps(s))
	if err != nil {
		return err
	}
	return step.RunAll(ctx, DestroyAct, []step.Step{{Name: "directory", Do: func(context.Context) error { return m.removeDir(s.now.ID) }}})
}

// teardownSteps release each resource once, in this order: the machine before what it holds open. The
// directory with the journal goes last, and only when all this succeeded.
func (m *Manager) teardownSteps(s *owned) []step.Step {
	return []step.Step{
		{Name: "intent", Do: func(context.Context) error { return m.intendEnd(s) }},
		{Name: "vmm", Do: func(ctx context.Context) error { return s.kill(ctx) }},
		{Name: "memory", Do: func(ctx context.Context) error { return m.releaseMemory(ctx, s) }},
		{Name: "disk", Do: func(ctx context.Context) error { return m.releaseDisk(ctx, s) }},
		{Name: "network", Do: func(ctx context.Context) error { return m.releaseNetwork(ctx, s) }},
	}
}

// DestroySteps names the steps of a destroy in order; the fault suite kills the agent after each.
func DestroySteps() []string {
	var m Manager
	return append(step.Names(m.teardownSteps(emptyOwned())), "directory")
}

// FailSteps names the steps by which a sandbox whose machine has ended gives back what it holds.
func FailSteps() []string {
	var m Manager
	return step.Names(m.teardownSteps(emptyOwned()))
}

// intendEnd makes it durable that the sandbox is being destroyed, so that a crash from here on does
// not bring it back.
func (m *Manager) intendEnd(s *owned) error {
	if _, err := os.Stat(m.dir(s.now.ID)); os.IsNotExist(err) {
		return nil
	}
	return m.writeJournal(s)
}

func (s *owned) kill(ctx context.Context) error {
	if s.machine == nil {
		return nil
	}
	if err := s.machine.Kill(ctx); err != nil {
		return err
	}
	s.machine = nil
	return nil
}

func (m *Manager) diskSpec(s *owned) DiskSpec {
	return DiskSpec{ID: s.now.ID, Dir: m.dir(s.now.ID), Template: s.now.Template, SizeMiB: s.now.DiskMiB}
}

func (m *Manager) releaseDisk(ctx context.Context, s *owned) error {
	if !s.hasDisk {
		return nil
	}
	if s.machine != nil {
		return fmt.Errorf("the machine still holds the disk of %s", s.now.ID)
	}
	if err := m.cfg.Disk.Release(ctx, m.diskSpec(s)); err != nil {
		return err
	}
	s.hasDisk = false
	return nil
}

func (m *Manager) releaseMemory(ctx context.Context, s *owned) error {
	if s.machine != nil {
		return fmt.Errorf("the machine still holds the memory of %s", s.now.ID)
	}
	return m.cfg.Memory.Release(ctx, s.now.ID, m.dir(s.now.ID))
}

// releaseNetwork removes the network and gives the slot back, once: a second time the slot might be
// another sandbox's.
func (m *Manager) releaseNetwork(ctx context.Context, s *owned) error {
	slot := s.info().Slot
	if slot == 0 {
		return nil
	}
	if s.machine != nil {
		return fmt.Errorf("the machine still holds slot %d", slot)
	}
	if err := m.cfg.Network.Remove(ctx, slot); err != nil {
		return err
	}
	s.update(func(i *Info) { i.Slot = 0 })
	m.cfg.Network.Free(slot)
	return nil
}

// fail records that the machine ended by itself, or cannot go on, and releases what the sandbox held. The
// sandbox stays listed, with its reason and its console, until it is destroyed or its deadline comes. A
// snapshot that it was once resumed from stays in its directory until then, and is never gone back to: the
// sandbox has moved on since.
func (m *Manager) fail(s *owned, reason string) {
	s.become(Failed)
	s.update(func(i *Info) { i.Failure = reason })
	s.stopped, s.frozen, s.retryAt = false, false, time.Time{}
	m.cfg.Logger.Warn("a sandbox has failed", "sandbox", s.now.ID, "reason", reason)
	m.cfg.OnEnd(s.now.ID)
	ctx, cancel := context.WithTimeout(context.Background(), teardownTimeout)
	defer cancel()
	if err := step.RunAll(ctx, FailAct, m.teardownSteps(s)); err != nil {
		m.cfg.Logger.Error("a failed sandbox still holds something; its destroy will try again", "sandbox", s.now.ID, "error", err)
	}
}
