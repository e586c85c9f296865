package sandbox

import (
	"context"
	"os"

	"wrenn/impl/snapshot"
)

// merging is a merge under way. The sandbox's owner starts it and ends it before it does anything else with
// the snapshot.
type merging struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// startMerge begins to merge the layers of a paused sandbox's snapshot into one, in the background, if they
// have become many.
func (m *Manager) startMerge(s *owned) {
	if s.now.State != Paused || s.holds || s.merge != nil || s.merged {
		return
	}
	s.merged = true // tried once per pause
	from := m.path(s, snapshotName)
	manifest, err := snapshot.Read(from)
	if err != nil || manifest.Layers <= maxDiffs {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := &merging{cancel: cancel, done: make(chan struct{})}
	s.merge = g
	to, id := m.path(s, mergeName), s.now.ID
	go func() {
		defer close(g.done)
		err := m.mergeLayers(ctx, from, to, manifest)
		switch {
		case err == nil:
			m.cfg.Logger.Info("layers are merged", "sandbox", id, "layers", manifest.Layers)
		case ctx.Err() == nil:
			m.cfg.Logger.Error("layers could not be merged", "sandbox", id, "error", err)
		}
	}()
}

// stopMerge returns when no merge runs; one that had not come to its end is given up.
func (s *owned) stopMerge() {
	if s.merge == nil {
		return
	}
	s.merge.cancel()
	<-s.merge.done
	s.merge = nil
}

// mergeLayers makes the same snapshot with one layer beside it and puts it in its place by one rename.
func (m *Manager) mergeLayers(ctx context.Context, from, to string, manifest snapshot.Manifest) error {
	defer os.RemoveAll(to) //nolint:errcheck // the next park removes it too
	if err := snapshot.Create(to); err != nil {
		return err
	}
	if err := m.cfg.Memory.Merge(ctx, from, manifest.Layers, to); err != nil {
		return err
	}
	if err := snapshot.Link(from, to, manifest.WithoutLayers()); err != nil {
		return err
	}
	manifest.Layers = 1
	if _, err := snapshot.Seal(ctx, to, manifest); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return snapshot.Commit(to, from)
}
