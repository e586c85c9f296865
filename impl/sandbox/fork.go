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

// Snapshot keeps the memory and the disk of a running or paused sandbox under a name that is new; the sandbox
// goes on. On an error nothing of that name is left.
func (m *Manager) Snapshot(ctx context.Context, id, name string) (SnapshotInfo, []Stage, error) {
	if err := validateSnapshotName(name); err != nil {
		return SnapshotInfo{}, nil, err
	}
	s, err := m.find(id)
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	if i := s.info(); i.State != Running && i.State != Paused {
		return SnapshotInfo{}, nil, i.State.conflict(id, "snapshotted")
	}
	release, err := m.reserveName(name)
	if err != nil {
		return SnapshotInfo{}, nil, err
	}
	defer release()
	var phases []Stage
	var failed error
	err = s.ask(ctx, "snapshotted", func() {
		switch s.now.State {
		case Running:
			phases, failed = m.fork(ctx, s, name)
		case Paused:
			phases, failed = m.keepPaused(ctx, s, name)
		default:
			failed = s.now.State.conflict(id, "snapshotted")
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return SnapshotInfo{}, phases, err
	}
	info, err := m.namedInfo(name)
	return info, phases, err
}

// fork runs in the owner, for a sandbox that runs.
func (m *Manager) fork(ctx context.Context, s *owned, name string) ([]Stage, error) {
	if err := s.canBeWritten("snapshotted", false); err != nil {
		return nil, err
	}
	ctx, end := s.begin(ctx)
	defer end()
	w := m.newWriting(s, pauseKind{})
	w.dir, w.to = m.namedNewDir(name), m.namedDir(name)
	timings, err := step.Run(ctx, SnapshotAct, m.forkSteps(s, w))
	phases := plainStages(timings)
	if err != nil {
		m.cfg.Logger.Warn("sandbox could not be snapshotted", "sandbox", s.now.ID, "snapshot", name, "error", err)
		return phases, m.afterFailedWriting(ctx, s, err)
	}
	s.lineage = w.manifest.ID
	m.cfg.Logger.Info("sandbox is snapshotted", "sandbox", s.now.ID, "snapshot", name, "layers", w.manifest.Layers, "phases", phases)
	return phases, nil
}

// forkSteps write the snapshot and let the sandbox go on. Its next diff lies on the layer just written.
func (m *Manager) forkSteps(s *owned, w *writing) []step.Step {
	chain := filepath.Join(m.dir(s.now.ID), chainName)
	return append(m.writeSteps(s, w, false),
		step.Step{Name: "chain", Do: func(context.Context) error {
			if err := snapshot.Create(chain); err != nil {
				return err
			}
			return snapshot.LinkLayers(w.dir, chain, w.manifest.Layers)
		}, Undo: func(context.Context) error { return os.RemoveAll(chain) }},
		step.Step{Name: "commit", Do: func(context.Context) error {
			w.committed = true
			return snapshot.Commit(w.dir, w.to)
		}, Undo: func(context.Context) error { return w.takeBack() }},
		step.Step{Name: "go", Do: func(ctx context.Context) error { return m.unstop(ctx, s) }},
		step.Step{Name: "thaw", Do: func(ctx context.Context) error { return m.thaw(ctx, s) }},
		step.Step{Name: "running", Do: func(context.Context) error {
			s.become(Running)
			return m.writeJournal(s)
		}},
	)
}

// SnapshotSteps names the steps of a snapshot of a running sandbox in order.
func SnapshotSteps() []step.Step {
	var m Manager
	return m.forkSteps(emptyOwned(), &writing{})
}

// keepPaused runs in the owner, for a sandbox that is paused: its snapshot gets another name.
func (m *Manager) keepPaused(ctx context.Context, s *owned, name string) ([]Stage, error) {
	s.stopMerge()
	ctx, end := s.begin(ctx)
	defer end()
	from := m.path(s, snapshotName)
	manifest, err := snapshot.Read(from)
	if err != nil {
		return nil, err
	}
	w := &writing{dir: m.namedNewDir(name), to: m.namedDir(name), manifest: manifest}
	w.manifest.ID, w.manifest.Parent, w.manifest.CreatedAt = snapshot.NewID(), manifest.ID, time.Now()
	timings, err := step.Run(ctx, KeepAct, keepSteps(from, manifest, w))
	if errors.Is(context.Cause(ctx), errGivenUp) && err != nil {
		err = fmt.Errorf("%w: sandbox %s: %w", ErrConflict, s.now.ID, err)
	}
	return plainStages(timings), err
}

func keepSteps(from string, manifest snapshot.Manifest, w *writing) []step.Step {
	return []step.Step{
		{Name: "link", Do: func(context.Context) error {
			if err := snapshot.Create(w.dir); err != nil {
				return err
			}
			return snapshot.Link(from, w.dir, manifest)
		}, Undo: func(context.Context) error { return os.RemoveAll(w.dir) }},
		{Name: "seal", Do: func(ctx context.Context) error {
			var err error
			w.manifest, err = snapshot.Seal(ctx, w.dir, w.manifest)
			return err
		}},
		{Name: "commit", Do: func(context.Context) error {
			w.committed = true
			return snapshot.Commit(w.dir, w.to)
		}, Undo: func(context.Context) error { return w.takeBack() }},
	}
}

// KeepSteps names the steps of a snapshot of a paused sandbox in order.
func KeepSteps() []step.Step { return keepSteps("", snapshot.Manifest{}, &writing{}) }
