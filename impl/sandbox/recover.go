package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"wrenn/impl/step"
)

// Recovered says what an earlier life of the agent left and what became of it.
type Recovered struct {
	// Adopted are sandboxes that run on, Kept are failed ones that stay listed, Undone are those that
	// were half made or whose machine is gone.
	Adopted, Kept, Undone []string
	// Slots are networks that belonged to nobody.
	Slots []int
}

// Recover reads the journals of an earlier life. What is complete and alive is adopted before it
// returns, so that its slot and id are taken; the rest, which can be slow, is undone by finish, which
// may run beside new creates.
func (m *Manager) Recover() (finish func(context.Context) (Recovered, error), err error) {
	journals, err := m.readJournals()
	if err != nil {
		return nil, err
	}
	orphans, err := m.cfg.VMM.Orphans(m.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("look for machines of an earlier life: %w", err)
	}
	var r Recovered
	for id, j := range journals {
		switch {
		case j != nil && j.Info.State == Running && m.adopt(j):
			delete(orphans, m.dir(id))
			r.Adopted = append(r.Adopted, id)
		case j != nil && j.Info.State == Failed:
			m.keep(j)
			r.Kept = append(r.Kept, id)
		default:
			r.Undone = append(r.Undone, id)
		}
	}
	return func(ctx context.Context) (Recovered, error) {
		err := step.RunAll(ctx, RecoverAct, m.recoverSteps(&r, orphans))
		return r, err
	}, nil
}

// recoverSteps undo what an earlier life has left half made or half removed. Should this life end in between,
// the next finds what is left by the same looks at directories, processes and networks.
func (m *Manager) recoverSteps(r *Recovered, orphans map[string]Identity) []step.Step {
	var living map[string]bool
	return []step.Step{
		{Name: "machines", Do: func(ctx context.Context) (err error) {
			living, err = m.killOrphans(ctx, orphans)
			return err
		}},
		{Name: "directories", Do: func(ctx context.Context) error { return m.removeDirs(ctx, r.Undone, living) }},
		{Name: "networks", Do: func(ctx context.Context) (err error) {
			r.Slots, err = m.cfg.Network.Reclaim(ctx)
			return err
		}},
	}
}

// RecoverSteps names the steps by which an agent clears up after an earlier life, in order.
func RecoverSteps() []string {
	var m Manager
	return step.Names(m.recoverSteps(nil, nil))
}

// adopt takes over a sandbox whose machine still runs; false when it does not.
func (m *Manager) adopt(j *journal) bool {
	machine, err := m.cfg.VMM.Adopt(j.Machine, m.dir(j.Info.ID))
	if err != nil {
		m.cfg.Logger.Warn("sandbox's machine is gone", "sandbox", j.Info.ID, "error", err)
		return false
	}
	policy, err := m.claim(j)
	if err != nil {
		m.cfg.Logger.Error("sandbox's network cannot be taken over", "sandbox", j.Info.ID, "slot", j.Info.Slot, "error", err)
		return false
	}
	s := fromJournal(j)
	s.machine, s.hasDisk, s.policy = machine, true, policy
	s.now.Address = m.cfg.Network.Address(j.Info.Slot)
	m.enter(s)
	m.cfg.Logger.Info("sandbox adopted", "sandbox", j.Info.ID, "slot", j.Info.Slot, "pid", j.Machine.PID)
	return true
}

// claim takes over the network, and puts in force what the journal says unless it is.
func (m *Manager) claim(j *journal) (NetworkPolicy, error) {
	policy, err := parseRules(j.Info.Network)
	if err != nil {
		return policy, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), rulesTimeout)
	defer cancel()
	return policy, m.cfg.Network.Claim(ctx, j.Info.Slot, policy)
}

// keep lists a sandbox that had failed, so that its reason and console can still be read.
func (m *Manager) keep(j *journal) {
	s := fromJournal(j)
	s.now.Slot = 0
	s.hasDisk = true
	m.enter(s)
}

func fromJournal(j *journal) *owned {
	s := emptyOwned()
	s.now, s.token, s.env = j.Info, j.AccessToken, j.EnvVars
	close(s.created)
	return s
}

func (m *Manager) enter(s *owned) {
	m.mu.Lock()
	m.sandboxes[s.now.ID] = s
	m.mu.Unlock()
	m.wg.Go(func() { m.own(s, false) })
}

// killOrphans kills the machines that nobody owns and returns the directories of those that could not be.
func (m *Manager) killOrphans(ctx context.Context, orphans map[string]Identity) (living map[string]bool, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	living = make(map[string]bool)
	for dir, identity := range orphans {
		wg.Go(func() {
			err := m.killOrphan(ctx, identity, dir)
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			living[dir] = true
			errs = append(errs, fmt.Errorf("kill the machine of %s: %w", filepath.Base(dir), err))
		})
	}
	wg.Wait()
	return living, errors.Join(errs...)
}

// removeDirs removes the directories of half-made sandboxes; one stays when its machine could not be killed,
// so that the next start tries again.
func (m *Manager) removeDirs(ctx context.Context, ids []string, living map[string]bool) error {
	var wg sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		if !living[m.dir(id)] {
			wg.Go(func() {
				if errs[i] = m.cfg.Disk.Remove(ctx, m.dir(id)); errs[i] == nil {
					errs[i] = m.removeDir(id)
				}
			})
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) killOrphan(ctx context.Context, identity Identity, dir string) error {
	machine, err := m.cfg.VMM.Adopt(identity, dir)
	if err != nil {
		return nil //nolint:nilerr // it has ended since it was found
	}
	return machine.Kill(ctx)
}
