package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"wrenn/impl/step"
)

// The acts under which steps run; errors and the fault suite name them.
const (
	CreateAct  = "sandbox.create"
	DestroyAct = "sandbox.destroy"
	FailAct    = "sandbox.fail"
	RecoverAct = "sandbox.recover"
	// PauseAct is undone by its own undos until the snapshot is committed; ParkAct is what then remains to
	// be done, and what a resume that failed ends in.
	PauseAct  = "sandbox.pause"
	ParkAct   = "sandbox.park"
	ResumeAct = "sandbox.resume"
	// SnapshotAct is of a running sandbox, KeepAct of a paused one.
	SnapshotAct = "sandbox.snapshot"
	KeepAct     = "sandbox.keep"
	// WakeAct lets a sandbox go on whose pause a former life of the agent, or an undo, has left half done.
	WakeAct = "sandbox.wake"
)

// create performs a sandbox's create. On an error what was done is still there; end takes it down.
func (m *Manager) create(s *owned) error {
	ctx, cancel := context.WithTimeout(s.aborted, m.cfg.BootTimeout)
	defer cancel()
	var report BootReport
	timings, err := step.Run(ctx, CreateAct, m.createSteps(s, &report))
	if err != nil {
		return m.explain(ctx, s, m.cfg.BootTimeout, err)
	}
	s.stopped, s.frozen = false, false
	s.update(func(i *Info) {
		i.Stages = stages(timings, report)
		i.EnvdVersion = report.EnvdVersion
		i.Deadline = time.Now().Add(s.timeout)
	})
	if err := m.writeJournalAs(s, Running); err != nil {
		return err
	}
	s.become(Running)
	m.cfg.Logger.Info("sandbox runs", "sandbox", s.now.ID, "template", s.now.Template, "slot", s.now.Slot, "pid", s.machine.Identity().PID)
	return nil
}

// createSteps undo nothing that lasts: taking down a half-made sandbox is the same act as taking down a whole
// one, and there is one list for it (teardownSteps).
func (m *Manager) createSteps(s *owned, report *BootReport) []step.Step {
	steps := []step.Step{
		{Name: "slot", Do: func(context.Context) error { return m.reserve(s) }},
		{Name: "journal", Do: func(context.Context) error { return m.intend(s) }},
	}
	if s.now.Snapshot != "" {
		from := origin{dir: m.namedDir(s.now.Snapshot), shared: true}
		return append(steps, m.restoreSteps(s, &from, report)...)
	}
	return append(steps,
		step.Step{Name: "disk", Do: func(ctx context.Context) error {
			s.hasDisk = true
			return m.cfg.Disk.Create(ctx, m.diskSpec(s))
		}},
		step.Step{Name: "network", Do: func(ctx context.Context) error { return m.cfg.Network.Create(ctx, s.now.Slot, s.policy) }},
		step.Step{Name: "vmm", Do: func(ctx context.Context) error { return m.boot(ctx, s) }},
		step.Step{Name: "guest", Do: func(ctx context.Context) error {
			var err error
			*report, err = m.cfg.Guest.Init(ctx, s.now.Address, GuestInit{AccessToken: s.token, EnvVars: s.env}, s.machine.Done())
			return err
		}},
	)
}

// CreateSteps names the steps of a create in order; the fault suite kills the agent after each.
func CreateSteps() []string {
	var m Manager
	return step.Names(m.createSteps(emptyOwned(), nil))
}

// CloneSteps names the steps of a create from a snapshot in order.
func CloneSteps() []string {
	var m Manager
	s := emptyOwned()
	s.now.Snapshot = "some"
	return step.Names(m.createSteps(s, nil))
}

func (m *Manager) reserve(s *owned) error {
	slot, err := m.cfg.Network.Reserve()
	if err != nil {
		return err
	}
	s.update(func(i *Info) { i.Slot, i.Address = slot, m.cfg.Network.Address(slot) })
	return nil
}

// intend makes the intent durable: from here on a crash leaves a journal that says what to undo.
func (m *Manager) intend(s *owned) error {
	if err := m.makeDir(s.now.ID); err != nil {
		return err
	}
	return m.writeJournal(s)
}

func (m *Manager) boot(ctx context.Context, s *owned) error {
	if s.tmpl.Kernel == "" { // of a snapshot, or of a former life
		tmpl, err := m.cfg.Disk.Template(s.now.Template)
		if err != nil {
			return err
		}
		s.tmpl = tmpl
	}
	machine, err := m.cfg.VMM.Boot(ctx, BootSpec{
		ID: s.now.ID, Dir: m.dir(s.now.ID), Slot: s.now.Slot, VCPUs: s.now.VCPUs, MemoryMiB: s.now.MemoryMiB,
		Kernel: s.tmpl.Kernel, Initramfs: s.tmpl.Initramfs, Limits: s.now.Limits,
	})
	if machine != nil {
		s.machine = machine // also beside an error: it may still run
	}
	return err
}

// explain adds to a failed create or resume what the caller cannot see: why it was cut short, or what the guest
// printed last.
func (m *Manager) explain(ctx context.Context, s *owned, limit time.Duration, err error) error {
	switch {
	case s.aborted.Err() != nil:
		return fmt.Errorf("%w: sandbox %s was given up while it was %s: %w", ErrConflict, s.now.ID, s.info().State, err)
	case s.machine == nil && ctx.Err() != nil:
		return fmt.Errorf("the sandbox was not as far as the VMM within %v: %w", limit, err)
	case s.machine == nil:
		return err
	case ctx.Err() != nil:
		err = fmt.Errorf("the guest did not answer within %v: %w", limit, err)
	}
	if exit := s.machine.Exit(); exit != "" {
		err = fmt.Errorf("the VMM ended (%s): %w", exit, err)
	}
	console, consoleErr := m.cfg.VMM.Console(m.dir(s.now.ID), 2048)
	if consoleErr != nil {
		return errors.Join(err, consoleErr)
	}
	if len(console) > 0 {
		err = fmt.Errorf("%w; the guest's console ends with:\n%s", err, printable(console))
	}
	return err
}

// printable takes from what a guest printed whatever could act on the terminal of who reads it.
func printable(console []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(string(console), ""))
}

// stages turns the steps' times into those that a caller is told: the wait for the guest is split by
// what the guest says of its own clock, counted back from its answer.
func stages(timings []step.Timing, report BootReport) []Stage {
	var out []Stage
	for _, t := range timings {
		if t.Name != "guest" || report.EnvdAt == 0 {
			out = append(out, Stage(t))
			continue
		}
		envd := min(max(report.NowAt-report.EnvdAt, 0), t.Duration)
		init := time.Duration(0)
		if report.InitAt > 0 {
			init = min(max(report.EnvdAt-report.InitAt, 0), t.Duration-envd)
		}
		out = append(out, Stage{"kernel", t.Duration - init - envd}, Stage{"init", init}, Stage{"envd", envd})
	}
	return out
}
