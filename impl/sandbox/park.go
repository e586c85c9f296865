package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"wrenn/impl/step"
)

// park gives back what a paused sandbox still holds of the host: after a pause, after a resume that failed, and
// what a former life of the agent has left. It may be repeated.
func (m *Manager) park(s *owned) error {
	ctx, cancel := context.WithTimeout(context.Background(), teardownTimeout)
	defer cancel()
	s.holds = true
	m.cfg.OnEnd(s.now.ID)
	if err := step.RunAll(ctx, ParkAct, m.parkSteps(s)); err != nil {
		m.cfg.Logger.Error("a paused sandbox is not wholly parked", "sandbox", s.now.ID, "error", err)
		s.retry()
		return err
	}
	s.holds = false
	return nil
}

func (m *Manager) parkSteps(s *owned) []step.Step {
	return []step.Step{
		{Name: "journal", Do: func(context.Context) error { return m.writeJournal(s) }},
		{Name: "vmm", Do: func(ctx context.Context) error { return s.kill(ctx) }},
		{Name: "memory", Do: func(ctx context.Context) error { return m.releaseMemory(ctx, s) }},
		{Name: "disk", Do: func(ctx context.Context) error { return m.releaseDisk(ctx, s) }},
		{Name: "files", Do: func(context.Context) error { return m.removeWorking(s) }},
		{Name: "network", Do: func(ctx context.Context) error { return m.parkNetwork(ctx, s) }},
	}
}

// ParkSteps names the steps by which a paused sandbox gives back what it holds.
func ParkSteps() []string {
	var m Manager
	return step.Names(m.parkSteps(emptyOwned()))
}

// removeWorking removes what belongs to a machine that no longer is: its chain, unfinished snapshots, and
// the former one, which a commit has left in the place of the unfinished.
func (m *Manager) removeWorking(s *owned) error {
	if s.machine != nil {
		return fmt.Errorf("the machine still holds its files")
	}
	return errors.Join(os.RemoveAll(m.path(s, newName)), os.RemoveAll(m.path(s, mergeName)), os.RemoveAll(m.path(s, chainName)),
		removeIfThere(m.path(s, socketName)))
}

// socketName is the VMM's, which refuses to start where its socket exists.
const socketName = "vmm.sock"

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// parkNetwork is releaseNetwork for a sandbox whose journal outlives it: that the slot is no longer its own is
// written down before another can get it.
func (m *Manager) parkNetwork(ctx context.Context, s *owned) error {
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
	if err := m.writeJournal(s); err != nil {
		s.update(func(i *Info) { i.Slot = slot })
		return err
	}
	m.cfg.Network.Free(slot)
	return nil
}
