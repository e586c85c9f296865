package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wrenn/impl/snapshot"
	"wrenn/impl/step"
)

// Bounds of pauses.
const (
	// actTimeout bounds a pause, a resume or a snapshot as a whole, so that it ends and is undone within the
	// 5 minutes that a control plane waits. Most of it is for writing the memory; each call of the VMM has a
	// deadline of its own that grows with the memory.
	actTimeout = 4 * time.Minute
	// freezeTimeout bounds the freezing of a guest: envd answers in milliseconds unless the write-back of
	// its file systems takes long; 30 s write 6 GB to a disk of 200 MB/s.
	freezeTimeout = 30 * time.Second
	// wakeTimeout bounds what lets a sandbox go on: a call of the VMM (20 s at most) and two of the guest.
	wakeTimeout = 40 * time.Second
	// maxDiffs is how many diffs may lie on a base before they are merged into a new one.
	maxDiffs = 8
	// maxLayers is where no further diff is made but a full snapshot: a sandbox that is always resumed at
	// once never gives a merge the time.
	maxLayers = 2 * maxDiffs
)

const (
	snapshotName = "snapshot"       // the committed snapshot of a sandbox
	newName      = "snapshot.new"   // one being written
	mergeName    = "snapshot.merge" // one with fewer layers being made of it
	chainName    = "memory"         // the layers under a running machine
)

func (m *Manager) path(s *owned, name string) string { return filepath.Join(m.dir(s.now.ID), name) }

// Pause stops a running sandbox and keeps its memory and disk, or with filesOnly its disk alone. It returns
// when that is durable and the host's resources are given back. On an error before that, also because ctx
// has ended or the sandbox is being destroyed, the sandbox runs on.
func (m *Manager) Pause(ctx context.Context, id string, filesOnly bool) (Outcome, error) {
	s, err := m.find(id)
	if err != nil {
		return Outcome{}, err
	}
	if i := s.info(); i.State != Running {
		return Outcome{}, i.State.conflict(id, "paused")
	}
	var out Outcome
	var failed error
	err = s.ask(ctx, "paused", func() {
		out.Phases, failed = m.pause(ctx, s, pauseKind{filesOnly: filesOnly})
		out.Info = s.info()
	})
	return out, errors.Join(err, failed)
}

// pauseKind is how a sandbox is paused.
type pauseKind struct {
	filesOnly bool
	// forced passes over a guest that does not answer.
	forced bool
}

// pauseLate pauses a sandbox whose deadline has passed. One whose guest does not let itself be frozen is
// paused as it is at the second try, so that no guest can prolong its time by that; other failures are
// retried for as long as they last, since destroying it would lose what it was promised to keep.
func (m *Manager) pauseLate(s *owned) {
	m.cfg.Logger.Info("sandbox is paused at its deadline", "sandbox", s.now.ID, "deadline", s.now.Deadline)
	kind := pauseKind{filesOnly: s.now.Lifecycle.PauseFilesOnly, forced: s.late > 0 || s.frozen}
	if _, err := m.pause(context.Background(), s, kind); err != nil && s.now.State == Running {
		s.late++
		s.retry()
	}
}

// pause runs in the owner.
func (m *Manager) pause(ctx context.Context, s *owned, kind pauseKind) ([]Stage, error) {
	if err := s.canBeWritten("paused", kind.forced); err != nil {
		return nil, err
	}
	ctx, end := s.begin(ctx)
	defer end()
	w := m.newWriting(s, kind)
	w.dir, w.to = m.path(s, newName), m.path(s, snapshotName)
	timings, err := step.Run(ctx, PauseAct, m.pauseSteps(s, w))
	phases := plainStages(timings)
	if err != nil {
		m.cfg.Logger.Warn("sandbox could not be paused", "sandbox", s.now.ID, "error", err)
		return phases, m.afterFailedWriting(ctx, s, err)
	}
	s.lineage, s.holds, s.late, s.merged = w.manifest.ID, true, 0, false
	s.stopped, s.frozen = false, false
	s.update(func(i *Info) { i.Generation, i.PausedAt = w.manifest.Generation, time.Now() })
	s.become(Paused)
	start := time.Now()
	if err := m.park(s); err != nil {
		m.cfg.Logger.Warn("a paused sandbox still holds something; it will be tried again", "sandbox", s.now.ID, "error", err)
	}
	phases = append(phases, Stage{"park", time.Since(start)})
	m.cfg.Logger.Info("sandbox is paused", "sandbox", s.now.ID, "generation", w.manifest.Generation, "layers", w.manifest.Layers, "phases", phases)
	return phases, nil
}

// canBeWritten says whether the sandbox can be written into a snapshot now.
func (s *owned) canBeWritten(act string, forced bool) error {
	switch {
	case s.now.State != Running:
		return s.now.State.conflict(s.now.ID, act)
	case s.legacy:
		return fmt.Errorf("%w: sandbox %s was started by an agent that knew no snapshots, so it cannot be %s", ErrConflict, s.now.ID, act)
	case s.frozen && !forced:
		return fmt.Errorf("%w: sandbox %s is coming back from a pause that failed, so it cannot be %s", ErrConflict, s.now.ID, act)
	}
	return nil
}

// writing is a snapshot that is being written: in dir, to be committed as to.
type writing struct {
	pauseKind
	dir, to  string
	diff     bool
	manifest snapshot.Manifest
	disk     []snapshot.File // what the disk's files hold, once they are there
	// committed is set by the commit, and unset when it is taken back.
	committed bool
}

func (m *Manager) newWriting(s *owned, kind pauseKind) *writing {
	i := s.info()
	return &writing{pauseKind: kind, manifest: snapshot.Manifest{
		ID: snapshot.NewID(), Parent: s.lineage, Generation: i.Generation + 1, FilesOnly: kind.filesOnly,
		Sandbox: i.ID, Template: i.Template, VCPUs: i.VCPUs, MemoryMiB: i.MemoryMiB, DiskMiB: i.DiskMiB,
		VMM: m.cfg.VMM.Name(), Kernel: filepath.Base(s.tmpl.Kernel), EnvdVersion: i.EnvdVersion, AccessToken: s.token, CreatedAt: time.Now(),
	}}
}

// pauseSteps end with the commit: whatever fails up to and in it is undone, and the sandbox runs on.
func (m *Manager) pauseSteps(s *owned, w *writing) []step.Step {
	return append(m.writeSteps(s, w, true),
		step.Step{Name: "commit", Do: func(context.Context) error {
			w.committed = true // also where it fails half-way: whether it has happened is looked up by the undo
			return snapshot.Commit(w.dir, w.to)
		}, Undo: func(context.Context) error { return w.takeBack() }},
	)
}

// PauseSteps names the steps of a pause in order; the fault suite kills the agent after each.
func PauseSteps() []step.Step {
	var m Manager
	return m.pauseSteps(emptyOwned(), &writing{})
}

// takeBack undoes the commit, if it has come to it.
func (w *writing) takeBack() error {
	if !w.committed {
		return nil
	}
	w.committed = false
	if now, err := snapshot.Read(w.to); err != nil || now.ID != w.manifest.ID {
		return nil //nolint:nilerr // what is in its place is another, or none
	}
	if _, err := os.Stat(w.dir); os.IsNotExist(err) {
		return os.Rename(w.to, w.dir)
	}
	return snapshot.Commit(w.dir, w.to)
}

// writeSteps stop the sandbox and write it into w.dir, up to a sealed snapshot.
func (m *Manager) writeSteps(s *owned, w *writing, last bool) []step.Step {
	return []step.Step{
		{Name: "intent", Do: func(context.Context) error {
			s.become(Pausing)
			return m.putJournalOf(s, w.manifest.ID)
		}, Undo: func(context.Context) error {
			s.become(Running)
			return m.writeJournal(s)
		}},
		{
			Name: "freeze", Do: func(ctx context.Context) error { return m.freeze(ctx, s, w.forced) },
			Undo: func(ctx context.Context) error { return m.thaw(ctx, s) },
		},
		// A crash of the host takes the machine with it, so until the commit nobody needs the intent but a next life
		// of the agent.
		{Name: "durable", Beside: true, Do: func(context.Context) error { return m.syncJournal(s) }},
		{Name: "vcpus", Do: func(ctx context.Context) error {
			s.stopped = true
			return s.machine.Pause(ctx)
		}, Undo: func(ctx context.Context) error { return m.unstop(ctx, s) }},
		{
			Name: "layers", Do: func(context.Context) error { return m.linkChain(s, w) },
			Undo: func(context.Context) error { return os.RemoveAll(w.dir) },
		},
		{Name: "memory", Do: func(ctx context.Context) error { return m.writeMemory(ctx, s, w) }},
		{Name: "disk", Beside: true, Do: func(ctx context.Context) error { return m.keepDisk(ctx, s, w, last) }},
		{Name: "seal", Do: func(ctx context.Context) error {
			var err error
			w.manifest, err = snapshot.Seal(ctx, w.dir, w.manifest, w.disk...)
			return err
		}},
	}
}

// freeze cuts the sandbox's connections, which no end would outlive, and stops the users' processes.
func (m *Manager) freeze(ctx context.Context, s *owned, forced bool) error {
	m.cfg.OnEnd(s.now.ID)
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	s.frozen = true
	err := m.cfg.Guest.Freeze(ctx, s.now.Address, s.token)
	if err != nil && forced {
		m.cfg.Logger.Warn("sandbox is paused though its guest could not be frozen", "sandbox", s.now.ID, "error", err)
		return nil
	}
	return err
}

// thaw lets a frozen guest go on, with the right time and with randomness of its own: what it had is also in the
// snapshot.
func (m *Manager) thaw(ctx context.Context, s *owned) error {
	if !s.frozen || s.stopped {
		return nil // what is stopped cannot be thawed; wake tries both again
	}
	_, err := m.cfg.Guest.Init(ctx, s.now.Address, GuestInit{
		AccessToken: s.token, FormerToken: s.token, SetClock: true, Entropy: entropy(), Thaw: true,
	}, s.machine.Done())
	if err != nil {
		return err
	}
	s.frozen = false
	return nil
}

func (m *Manager) unstop(ctx context.Context, s *owned) error {
	if !s.stopped {
		return nil
	}
	if err := s.machine.Resume(ctx); err != nil {
		return err
	}
	s.stopped = false
	return nil
}

// linkChain makes the new snapshot's directory with the layers that the next diff lies on. The sandbox's own
// links to them go first: until a snapshot of the VMM is known to have succeeded and to be kept, nobody knows
// whether its dirty pages still count from the last layer, and without a chain the next snapshot is full.
func (m *Manager) linkChain(s *owned, w *writing) error {
	if err := snapshot.Create(w.dir); err != nil {
		return err
	}
	if w.filesOnly {
		return nil
	}
	chain := m.path(s, chainName)
	layers, err := snapshot.Layers(chain)
	if err != nil {
		return err
	}
	if w.diff = m.cfg.Memory.Diffs() && layers > 0 && layers < maxLayers; w.diff {
		w.manifest.Layers = layers
		if err := snapshot.LinkLayers(chain, w.dir, layers); err != nil {
			return err
		}
	}
	return os.RemoveAll(chain)
}

// writeMemory lets the VMM write its state and the next layer.
func (m *Manager) writeMemory(ctx context.Context, s *owned, w *writing) error {
	if w.filesOnly {
		return nil
	}
	n := w.manifest.Layers
	if err := s.machine.Snapshot(ctx, MachineSnapshot{
		StatePath: filepath.Join(w.dir, snapshot.StateName), MemoryPath: filepath.Join(w.dir, snapshot.LayerName(n)),
		MemoryMiB: s.now.MemoryMiB, Diff: w.diff,
	}); err != nil {
		return err
	}
	w.manifest.Layers++
	return m.cfg.Memory.Describe(ctx, w.dir, n, Layer{Generation: w.manifest.Generation, MemoryMiB: s.now.MemoryMiB})
}

// keepDisk brings the disk into the snapshot and reads it while the VMM writes the memory.
func (m *Manager) keepDisk(ctx context.Context, s *owned, w *writing, last bool) error {
	if err := m.cfg.Disk.Keep(ctx, m.diskSpec(s), w.dir, last); err != nil {
		return err
	}
	former := []string{m.path(s, snapshotName)}
	if s.now.Snapshot != "" {
		former = append(former, m.namedDir(s.now.Snapshot))
	}
	var err error
	w.disk, err = snapshot.DescribeDisk(ctx, w.dir, &m.disks, former...)
	return err
}

// afterFailedWriting sees to a sandbox whose pause or snapshot has failed and been undone.
func (m *Manager) afterFailedWriting(ctx context.Context, s *owned, err error) error {
	if s.stopped || s.frozen {
		m.wake(s)
	}
	if s.now.State == Failed {
		return fmt.Errorf("sandbox %s has failed (%s): %w", s.now.ID, s.info().Failure, err)
	}
	if errors.Is(context.Cause(ctx), errGivenUp) {
		return fmt.Errorf("%w: sandbox %s: %w: %w", ErrConflict, s.now.ID, errGivenUp, err)
	}
	return err
}

// wake lets a sandbox go on that stands still since a pause that came to nothing. One whose processors cannot
// be started again has failed; one whose guest does not answer is tried again later.
func (m *Manager) wake(s *owned) {
	ctx, cancel := context.WithTimeout(context.Background(), wakeTimeout)
	defer cancel()
	_, err := step.Run(ctx, WakeAct, m.wakeSteps(s))
	switch {
	case err == nil:
		m.cfg.Logger.Info("sandbox goes on", "sandbox", s.now.ID)
	case s.stopped:
		m.fail(s, "its processors could not be started again: "+errors.Join(err, s.exited()).Error())
	default:
		m.cfg.Logger.Error("the processes of a sandbox could not be thawed; it will be tried again", "sandbox", s.now.ID, "error", err)
		s.become(Running)
		if err := m.writeJournal(s); err != nil {
			m.cfg.Logger.Error("a sandbox's journal cannot be written", "sandbox", s.now.ID, "error", err)
		}
		s.retry()
	}
}

// exited says how the machine ended, if it did.
func (s *owned) exited() error {
	if exit := s.machine.Exit(); exit != "" {
		return fmt.Errorf("the VMM ended (%s)", exit)
	}
	return nil
}

func (m *Manager) wakeSteps(s *owned) []step.Step {
	return []step.Step{
		{Name: "chain", Do: func(context.Context) error { return m.dropUnfinished(s, s.now.State == Pausing) }},
		{Name: "vcpus", Do: func(ctx context.Context) error { return m.unstop(ctx, s) }},
		{Name: "guest", Do: func(ctx context.Context) error { return m.thaw(ctx, s) }},
		{Name: "running", Do: func(context.Context) error {
			s.become(Running)
			return m.writeJournal(s)
		}},
	}
}

// WakeSteps names the steps by which a sandbox goes on after half a pause.
func WakeSteps() []string {
	var m Manager
	return step.Names(m.wakeSteps(emptyOwned()))
}

// dropUnfinished removes a snapshot that was not committed, and with chain the layers under the machine, of
// which nobody knows whether the next diff would fit them.
func (m *Manager) dropUnfinished(s *owned, chain bool) error {
	err := os.RemoveAll(m.path(s, newName))
	if chain {
		err = errors.Join(err, os.RemoveAll(m.path(s, chainName)))
	}
	return err
}
