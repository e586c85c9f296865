package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"wrenn/impl/snapshot"
	"wrenn/impl/step"
)

// Resume lets a paused sandbox go on, with a deadline of timeout from now, and returns when the daemon in its
// guest answers; on an error it stays paused, and its snapshot as it was. A sandbox that runs, or is just
// being resumed, only gets the deadline; with extendOnly a later one is kept. With filesOnly its memory is
// left aside and it boots from its disk.
func (m *Manager) Resume(ctx context.Context, id string, timeout time.Duration, extendOnly, filesOnly bool) (Outcome, error) {
	if err := validateTimeout(timeout); err != nil {
		return Outcome{}, err
	}
	s, err := m.find(id)
	if err != nil {
		return Outcome{}, err
	}
	switch i := s.info(); i.State {
	case Paused, Running, Resuming:
	default:
		return Outcome{}, i.State.conflict(id, "resumed")
	}
	var out Outcome
	var failed error
	err = s.ask(ctx, "resumed", func() {
		switch s.now.State {
		case Running:
			_, failed = m.moveDeadline(s, timeout, extendOnly)
		case Paused:
			s.timeout = timeout
			out.Phases, failed = m.resume(ctx, s, filesOnly)
			out.Resumed = failed == nil
		default:
			failed = s.now.State.conflict(id, "resumed")
		}
		out.Info = s.info()
	})
	return out, errors.Join(err, failed)
}

// resume runs in the owner.
func (m *Manager) resume(ctx context.Context, s *owned, filesOnly bool) ([]Stage, error) {
	s.stopMerge()
	if s.holds {
		if err := m.park(s); err != nil {
			return nil, fmt.Errorf("sandbox %s still holds what its pause could not give back: %w", s.now.ID, err)
		}
	}
	if err := m.readmit(s); err != nil {
		return nil, err
	}
	ctx, end := s.begin(ctx)
	defer end()
	from := origin{dir: m.path(s, snapshotName), filesOnly: filesOnly}
	var report BootReport
	pausedAt := s.now.PausedAt
	timings, err := step.Run(ctx, ResumeAct, m.resumeSteps(s, &from, &report))
	phases := plainStages(timings)
	if err != nil {
		return phases, m.afterFailedResume(ctx, s, pausedAt, err)
	}
	s.become(Running)
	m.cfg.Logger.Info("sandbox is resumed", "sandbox", s.now.ID, "generation", s.source.Generation, "snapshot", s.source.ID,
		"slot", s.now.Slot, "pid", s.machine.Identity().PID, "phases", phases)
	return phases, nil
}

// afterFailedResume parks the sandbox again; its snapshot is as it was.
func (m *Manager) afterFailedResume(ctx context.Context, s *owned, pausedAt time.Time, err error) error {
	if s.machine != nil {
		err = m.explain(ctx, s, actTimeout, err)
	} else if errors.Is(context.Cause(ctx), errGivenUp) {
		err = fmt.Errorf("%w: sandbox %s: %w: %w", ErrConflict, s.now.ID, errGivenUp, err)
	}
	m.cfg.Logger.Warn("sandbox could not be resumed", "sandbox", s.now.ID, "error", err)
	s.stopped, s.frozen = false, false
	s.update(func(i *Info) { i.PausedAt = pausedAt })
	s.become(Paused)
	return errors.Join(err, m.park(s))
}

// resumeSteps undo nothing that lasts: a resume that fails ends in park.
func (m *Manager) resumeSteps(s *owned, from *origin, report *BootReport) []step.Step {
	steps := []step.Step{
		{Name: "slot", Do: func(context.Context) error { return m.reserve(s) }},
		{Name: "intent", Do: func(context.Context) error { return m.writeJournal(s) }},
	}
	steps = append(steps, m.restoreSteps(s, from, report)...)
	return append(steps, step.Step{Name: "running", Do: func(context.Context) error {
		s.frozen = false
		s.update(func(i *Info) {
			i.Deadline, i.PausedAt = time.Now().Add(s.timeout), time.Time{}
			i.EnvdVersion = report.EnvdVersion
		})
		return m.writeJournalAs(s, Running)
	}})
}

// ResumeSteps names the steps of a resume in order; the fault suite kills the agent after each.
func ResumeSteps() []string {
	var m Manager
	return step.Names(m.resumeSteps(emptyOwned(), &origin{}, nil))
}

// origin is the snapshot that a machine is made of.
type origin struct {
	dir string
	// shared is a named one, which any number of sandboxes start from.
	shared bool
	// filesOnly leaves its memory aside; it is also set where there is none.
	filesOnly bool
	// memory is where the VMM gets it from, once that is provided.
	memory MemorySource
	checks *checks
	// What the VMM's step waits for, each from a step beside it.
	network, disk, provided gate
}

// gate is open once a step has done its part; where it fails, it ends the context of who waits.
type gate chan struct{}

func waitFor(ctx context.Context, gates ...gate) error {
	for _, g := range gates {
		select {
		case <-g:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// opening is do, which opens the gate when it has succeeded.
func opening(g *gate, do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := do(ctx)
		if err == nil {
			close(*g)
		}
		return err
	}
}

// restoreSteps make a machine of a snapshot in a sandbox that has its slot, up to users' processes that run. The
// snapshot is verified beside all of them, and the guest is told nothing before that is over. The VMM starts while disk
// and memory are made ready for it.
func (m *Manager) restoreSteps(s *owned, from *origin, report *BootReport) []step.Step {
	besideChecks := func(name string, do func(context.Context) error) step.Step {
		return step.Step{Name: name, Do: func(ctx context.Context) error { return from.checks.beside(ctx, do) }}
	}
	beside := func(one step.Step) step.Step {
		one.Beside = true
		return one
	}
	return []step.Step{
		{Name: "load", Do: func(context.Context) error {
			from.network, from.disk, from.provided = make(gate), make(gate), make(gate)
			return m.load(s, from)
		}},
		{Name: "verify", Do: func(context.Context) error {
			from.checks = m.check(s, from)
			return nil
		}, Undo: func(context.Context) error { return from.checks.end(s, m, from) }},
		besideChecks("disk", opening(&from.disk, func(ctx context.Context) error {
			s.hasDisk = true
			return m.cfg.Disk.Restore(ctx, m.diskSpec(s), from.dir)
		})),
		beside(besideChecks("memory", opening(&from.provided, func(ctx context.Context) error { return m.provide(ctx, s, from) }))),
		{Name: "network", Beside: true, Do: opening(&from.network, func(ctx context.Context) error {
			return m.cfg.Network.Create(ctx, s.now.Slot, s.policy)
		})},
		beside(besideChecks("vmm", func(ctx context.Context) error { return m.restore(ctx, s, from) })),
		besideChecks("vcpus", func(ctx context.Context) error { return m.unstop(ctx, s) }),
		besideChecks("guest", func(ctx context.Context) error {
			var err error
			*report, err = m.cfg.Guest.Init(ctx, s.now.Address, s.firstInit(from), s.machine.Done())
			if !from.filesOnly {
				*report = BootReport{EnvdVersion: report.EnvdVersion} // its start was another machine's
			}
			if err != nil {
				return err
			}
			return from.checks.wait(ctx) // Init has; that it did is not left to it
		}),
	}
}

// load reads what the snapshot is, and refuses one that is not what its place says.
func (m *Manager) load(s *owned, from *origin) error {
	manifest, err := snapshot.Read(from.dir)
	if err != nil {
		return err
	}
	if !from.shared && (manifest.Sandbox != s.now.ID || manifest.Generation != s.now.Generation) {
		return fmt.Errorf("%w: %s holds generation %d of sandbox %s instead of generation %d of %s", snapshot.ErrDamaged,
			from.dir, manifest.Generation, manifest.Sandbox, s.now.Generation, s.now.ID)
	}
	from.filesOnly = from.filesOnly || manifest.FilesOnly
	if vmm := m.cfg.VMM.Name(); !from.filesOnly && manifest.VMM != vmm {
		return fmt.Errorf("%w: %s was made by %s, and this host runs %s", ErrNoVMM, from.dir, manifest.VMM, vmm)
	}
	s.source, s.lineage = manifest, manifest.ID
	return nil
}

// provide puts the layers under the machine, which the next diff lies on, and makes ready what it is restored
// from.
func (m *Manager) provide(ctx context.Context, s *owned, from *origin) (err error) {
	if from.filesOnly {
		return nil
	}
	chain := m.path(s, chainName)
	if err := snapshot.Create(chain); err != nil {
		return err
	}
	if err := snapshot.LinkLayers(from.dir, chain, s.source.Layers); err != nil {
		return err
	}
	from.memory, err = m.cfg.Memory.Provide(ctx, MemoryUse{
		ID: s.now.ID, Dir: m.dir(s.now.ID), From: from.dir, Layers: s.source.Layers, Shared: from.shared,
	})
	return err
}

// restore starts the machine: from memory, or by a boot. A VMM needs the network to start, and all else only to load.
func (m *Manager) restore(ctx context.Context, s *owned, from *origin) error {
	if err := waitFor(ctx, from.network); err != nil {
		return err
	}
	if from.filesOnly {
		if err := waitFor(ctx, from.disk); err != nil {
			return err
		}
		s.update(func(i *Info) { i.BootPath = Cold })
		return m.boot(ctx, s)
	}
	s.update(func(i *Info) { i.BootPath = Restored })
	s.stopped, s.frozen = true, true
	machine, err := m.cfg.VMM.Restore(ctx, RestoreSpec{
		ID: s.now.ID, Dir: m.dir(s.now.ID), Slot: s.now.Slot, MemoryMiB: s.now.MemoryMiB,
		StatePath: filepath.Join(from.dir, snapshot.StateName), Limits: s.now.Limits,
		Memory: func(ctx context.Context) (MemorySource, error) {
			if err := waitFor(ctx, from.disk, from.provided); err != nil {
				return MemorySource{}, err // the step that provides it may still be at it
			}
			return from.memory, nil
		},
	})
	if machine != nil {
		s.machine = machine // also beside an error: it may still run
	}
	return err
}

// firstInit is what the guest of a restored sandbox is told while its users' processes still stand still, once the
// snapshot is known to be whole. A clone gets a name, an identity and an environment of its own.
func (s *owned) firstInit(from *origin) GuestInit {
	init := GuestInit{AccessToken: s.token, EnvVars: s.env, Ready: from.checks.wait}
	if !from.filesOnly {
		init.FormerToken, init.SetClock, init.Entropy, init.Thaw = s.source.AccessToken, true, entropy(), true
	}
	if from.shared {
		init.Hostname, init.MachineID = s.now.ID, machineID()
	}
	return init
}

// entropy is what a guest's random state is mixed with: 32 bytes are what the kernel's takes to be new.
func entropy() []byte {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails: it ends the program instead
	return raw
}

// machineID is as machine-id(5) asks: a version 4 UUID without dashes.
func machineID() string {
	raw := entropy()[:16]
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	return hex.EncodeToString(raw)
}

// plainStages are the steps' times as they are.
func plainStages(timings []step.Timing) []Stage {
	out := make([]Stage, 0, len(timings))
	for _, t := range timings {
		out = append(out, Stage(t))
	}
	return out
}
