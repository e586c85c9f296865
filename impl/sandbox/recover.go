package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"wrenn/impl/snapshot"
	"wrenn/impl/step"
)

// Recovered says what an earlier life of the agent left and what became of it.
type Recovered struct {
	// Adopted are sandboxes that run on, Kept are failed ones that stay listed, Paused are those that may be
	// resumed, Undone are those that were half made or whose machine is gone.
	Adopted, Kept, Paused, Undone []string
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
	if err := m.clearNamed(); err != nil {
		return nil, err
	}
	var r Recovered
	for id, j := range journals {
		orphan, alive := orphans[m.dir(id)]
		switch m.fate(j, alive) {
		case Running:
			if !m.adopt(j) {
				r.Undone = append(r.Undone, id)
				continue
			}
			r.Adopted = append(r.Adopted, id)
		case Paused:
			m.adoptPaused(j, orphan, alive)
			r.Paused = append(r.Paused, id)
		case Failed:
			m.keep(j)
			r.Kept = append(r.Kept, id)
			continue
		default:
			r.Undone = append(r.Undone, id)
			continue
		}
		delete(orphans, m.dir(id))
	}
	return func(ctx context.Context) (Recovered, error) {
		err := step.RunAll(ctx, RecoverAct, m.recoverSteps(&r, orphans))
		return r, err
	}, nil
}

// fate is what becomes of a sandbox that an earlier life has left with this journal: Running is to be adopted,
// Paused to be kept as it is on the disk, Failed to be listed, Gone to be undone.
func (m *Manager) fate(j *journal, alive bool) State {
	if j == nil {
		return Gone
	}
	switch j.Info.State {
	case Running, Failed:
		return j.Info.State
	case Paused:
		return m.fateOfPaused(j)
	case Resuming:
		// It was not acknowledged, and user code may or may not have run: the snapshot is what counts.
		return m.fateOfPaused(j)
	case Pausing:
		if now, err := snapshot.Read(filepath.Join(m.dir(j.Info.ID), snapshotName)); err == nil && j.Target != "" && now.ID == j.Target {
			j.Info.State, j.Info.Generation, j.Info.PausedAt, j.Lineage = Paused, now.Generation, now.CreatedAt, now.ID
			return Paused
		}
		if alive {
			return Running
		}
		return Gone
	default:
		return Gone
	}
}

// fateOfPaused is Failed where the snapshot is not the one that the journal speaks of. What is in its files is
// verified by the resume.
func (m *Manager) fateOfPaused(j *journal) State {
	now, err := snapshot.Read(filepath.Join(m.dir(j.Info.ID), snapshotName))
	if err == nil && now.Generation != j.Info.Generation {
		err = fmt.Errorf("%w: generation %d instead of %d", snapshot.ErrDamaged, now.Generation, j.Info.Generation)
	}
	if err != nil {
		m.cfg.Logger.Error("the snapshot of a paused sandbox cannot be read", "sandbox", j.Info.ID, "error", err)
		j.Info.State, j.Info.Failure = Failed, "its snapshot cannot be read: "+err.Error()
		return Failed
	}
	j.Info.State = Paused
	return Paused
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
		{Name: "disks", Do: func(ctx context.Context) error { return m.cfg.Disk.Reclaim(ctx, m.livingDirs()) }},
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
	if j.Info.State == Pausing { // whatever it had come to, it goes on
		s.stopped, s.frozen, s.retryAt = true, true, time.Now()
	}
	m.enter(s)
	m.cfg.Logger.Info("sandbox adopted", "sandbox", j.Info.ID, "slot", j.Info.Slot, "pid", j.Machine.PID)
	return true
}

// adoptPaused lists a paused sandbox. What its pause had not yet given back, or its resume had taken, is
// given back by its owner; until then its slot is not another's.
func (m *Manager) adoptPaused(j *journal, orphan Identity, alive bool) {
	s := fromJournal(j)
	s.holds, s.retryAt, s.hasDisk = true, time.Now(), true
	if alive {
		if machine, err := m.cfg.VMM.Adopt(orphan, m.dir(j.Info.ID)); err == nil {
			s.machine = machine
		}
	}
	policy, err := parseRules(j.Info.Network)
	if err != nil {
		m.cfg.Logger.Error("a paused sandbox has bad network rules and gets none", "sandbox", j.Info.ID, "error", err)
	}
	s.policy = policy
	if slot := j.Info.Slot; slot != 0 {
		// Without a whole network there is nothing to take over: Reclaim removes what is left of it.
		if _, err := m.claim(j); err != nil {
			s.now.Slot = 0
			// Another may get the slot as soon as requests are served, and the next life must not believe that
			// it is this one's.
			if err := m.writeJournal(s); err != nil {
				m.cfg.Logger.Error("a paused sandbox's journal cannot be written", "sandbox", j.Info.ID, "error", err)
			}
		}
	}
	if err := dropFlat(m.dir(j.Info.ID)); err != nil {
		m.cfg.Logger.Warn("a cache cannot be removed", "sandbox", j.Info.ID, "error", err)
	}
	m.enter(s)
	m.cfg.Logger.Info("sandbox is paused", "sandbox", j.Info.ID, "generation", j.Info.Generation)
}

// livingDirs are the directories of all sandboxes that are there, in whatever state.
func (m *Manager) livingDirs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	dirs := make([]string, 0, len(m.sandboxes))
	for id := range m.sandboxes {
		dirs = append(dirs, m.dir(id))
	}
	return dirs
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
	s.now, s.token, s.env, s.lineage, s.legacy = j.Info, j.AccessToken, j.EnvVars, j.Lineage, j.Legacy
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
			wg.Go(func() { errs[i] = m.removeUndone(ctx, id) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) removeUndone(ctx context.Context, id string) error {
	dir := m.dir(id)
	if err := errors.Join(m.cfg.Memory.Release(ctx, id, dir), m.cfg.Disk.Release(ctx, DiskSpec{ID: id, Dir: dir})); err != nil {
		return err
	}
	return m.removeDir(id)
}

func (m *Manager) killOrphan(ctx context.Context, identity Identity, dir string) error {
	machine, err := m.cfg.VMM.Adopt(identity, dir)
	if err != nil {
		return nil //nolint:nilerr // it has ended since it was found
	}
	return machine.Kill(ctx)
}
