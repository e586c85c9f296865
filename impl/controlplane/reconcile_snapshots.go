package controlplane

import (
	"context"
	"errors"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// straySnapshot is how long an agent must have had a snapshot that the store does not know until it belongs
// to no request: none lasts so long.
const straySnapshot = agentclient.SnapshotTimeout + staleCreate

// reconcileSnapshots compares the snapshots of the store with an agent's. One that the agent twice did not
// list loses its row. One that the store does not know is never deleted, since it may be somebody's work: it
// gets a row, without a name, for people to see. But a fork's, which nobody can ask for, goes.
func (s *server) reconcileSnapshots(ctx context.Context, agent *agentclient.Client, before, now suspicion) error {
	rows, err := s.store.ListSnapshots(ctx, store.SnapshotQuery{Agent: agent.Name()})
	if err != nil {
		return err
	}
	list, err := agent.Snapshots(ctx)
	if errors.Is(err, agentclient.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	held := make(map[string]agentclient.Snapshot, len(list))
	for _, sn := range list {
		held[sn.Name] = sn
	}
	var errs []error
	for _, row := range rows {
		_, there := held[row.ID]
		delete(held, row.ID)
		switch {
		case there:
		case !before.lostSnapshots[row.ID]:
			now.lostSnapshots[row.ID] = true
		default:
			s.cfg.Logger.WarnContext(ctx, "snapshot is gone from its agent", "snapshot", row.ID, "name", row.Name, "agent", agent.Name())
			errs = append(errs, s.store.DeleteSnapshot(ctx, row.ID))
		}
	}
	for name, sn := range held {
		first, seen := before.straySnapshots[name]
		if !seen {
			first = time.Now()
		}
		if time.Since(first) < straySnapshot {
			now.straySnapshots[name] = first
			continue
		}
		errs = append(errs, s.settleStray(ctx, agent, sn))
	}
	return errors.Join(errs...)
}

func (s *server) settleStray(ctx context.Context, agent *agentclient.Client, sn agentclient.Snapshot) error {
	if isFork(sn.Name) {
		s.dropSnapshot(ctx, agent.Name(), sn.Name)
		return nil
	}
	row := store.Snapshot{Tag: store.DefaultTag}
	fill(&row, agent.Name(), sn)
	s.cfg.Logger.InfoContext(ctx, "snapshot found that nobody has named", "snapshot", sn.Name, "agent", agent.Name())
	_, err := s.store.PutSnapshot(ctx, row)
	return err
}
