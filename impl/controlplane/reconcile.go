package controlplane

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn/impl/agentclient"
	"wrenn/impl/egress"
	"wrenn/impl/store"
)

// staleCreate is the age at which a row that is still "creating" belongs to nobody: no create lasts so long,
// so the control plane that began it has died.
const staleCreate = agentclient.CreateTimeout + settleTimeout

// removers is how many sandboxes one round removes at a time: one whose teardown hangs (a minute at most)
// must not keep the others waiting.
const removers = 8

// suspicion is what one comparison found and a second one must find again before anything is destroyed: a
// single list may have been taken at a bad moment.
type suspicion struct {
	// lost are running sandboxes that the agent did not list, with the version of the row.
	lost map[string]int64
	// stray are sandboxes that the agent listed and the store does not know.
	stray map[string]bool
	// lostSnapshots are those that the agent did not list. straySnapshots are those that the store does not
	// know, with the time at which that was first seen.
	lostSnapshots  map[string]bool
	straySnapshots map[string]time.Time
}

// reconcileLoop compares the store with one agent now and then, until ctx ends.
func (s *server) reconcileLoop(ctx context.Context, agent *agentclient.Client) {
	tick := time.NewTicker(s.cfg.ReconcileInterval)
	defer tick.Stop()
	var before suspicion
	var silent bool
	for {
		now, err := s.reconcile(ctx, agent, before)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			before = now
			if silent {
				s.cfg.Logger.InfoContext(ctx, "agent answers again", "agent", agent.Name())
			}
		case !silent:
			s.cfg.Logger.WarnContext(ctx, "could not compare sandboxes with an agent", "agent", agent.Name(), "error", err)
		}
		silent = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reconcile compares the store with one agent once. The rows are read before the agent's list, so a sandbox
// that was running then and is not listed has really ended; a sandbox that is listed and not among the rows
// may just have been made, so the store is asked again for it. A change of a row in between shows in its
// version, and the row is left alone.
func (s *server) reconcile(ctx context.Context, agent *agentclient.Client, before suspicion) (suspicion, error) {
	rows, err := s.store.List(ctx, store.Query{Agent: agent.Name()})
	if err != nil {
		return suspicion{}, err
	}
	list, err := agent.List(ctx)
	if err != nil {
		return suspicion{}, err
	}
	held := make(map[string]agentclient.Sandbox, len(list))
	for _, sb := range list {
		held[sb.ID] = sb
	}
	now := suspicion{lost: map[string]int64{}, stray: map[string]bool{}, lostSnapshots: map[string]bool{}, straySnapshots: map[string]time.Time{}}
	known := make(map[string]bool, len(rows))
	unwanted := map[string]string{}
	var errs []error
	for _, row := range rows {
		known[row.ID] = true
		sb, there := held[row.ID]
		why, err := s.reconcileRow(ctx, agent, row, sb, there, before, now)
		errs = append(errs, err)
		if why != "" {
			unwanted[row.ID] = why
		}
	}
	for id := range held {
		if known[id] {
			continue
		}
		why, err := s.reconcileStray(ctx, id, before, now)
		errs = append(errs, err)
		if why != "" {
			unwanted[id] = why
		}
	}
	errs = append(errs, s.removeAll(ctx, agent, unwanted), s.reconcileSnapshots(ctx, agent, before, now))
	return now, errors.Join(errs...)
}

// removeAll removes sandboxes, a few at a time; unwanted says why for each id.
func (s *server) removeAll(ctx context.Context, agent *agentclient.Client, unwanted map[string]string) error {
	var group errgroup.Group
	group.SetLimit(removers)
	var mu sync.Mutex
	var errs []error
	for id, why := range unwanted {
		group.Go(func() error {
			if err := s.remove(ctx, agent, id, why); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in errs, all of them
	return errors.Join(errs...)
}

// reconcileRow settles one row; there says whether the agent holds sb, its sandbox. It returns why the
// sandbox has to be removed, if it has to.
func (s *server) reconcileRow(ctx context.Context, agent *agentclient.Client, row store.Sandbox, sb agentclient.Sandbox, there bool, before, now suspicion) (why string, err error) {
	_, killing := s.killing.Load(row.ID)
	switch {
	case killing, row.State == store.Creating && time.Since(row.CreatedAt) < staleCreate:
		return "", nil
	case row.State == store.Creating || row.State == store.Destroying:
		return "nobody wants it", nil
	case there && sb.State == agentclient.StateDestroying:
		return "", nil // the agent is at it; afterwards it no longer lists it
	case there && ended(sb.State):
		s.cfg.Logger.WarnContext(ctx, "sandbox ended by itself", "sandbox", row.ID, "state", sb.State, "reason", sb.Failure)
		return "it ended by itself", nil
	case there:
		_, err := s.adopt(ctx, row, sb)
		if errors.Is(err, store.ErrNotFound) { // deleted meanwhile
			return "", nil
		}
		return "", err
	case before.lost[row.ID] != row.Version:
		now.lost[row.ID] = row.Version
		return "", nil
	}
	s.cfg.Logger.InfoContext(ctx, "sandbox is gone from its agent", "sandbox", row.ID, "agent", agent.Name(), "end", row.EndAt)
	err = s.store.DeleteVersion(ctx, row.ID, row.Version)
	if errors.Is(err, store.ErrConflict) {
		return "", nil // somebody changed or deleted it meanwhile: the next round looks again
	}
	return "", err
}

// adopt takes over the state, the end and the network rules that the agent holds to, unless the row has
// changed since it was read; it returns the row as it is then, or the store's ErrNotFound. An agent pauses by itself at a sandbox's end.
func (s *server) adopt(ctx context.Context, row store.Sandbox, sb agentclient.Sandbox) (store.Sandbox, error) {
	now := observed(row, sb)
	if now.State == row.State && now.EndAt.Equal(row.EndAt) && rulesOf(now).Equal(rulesOf(row)) {
		return row, nil
	}
	if now.State != row.State {
		s.cfg.Logger.InfoContext(ctx, "sandbox has changed its state by itself", "sandbox", row.ID, "from", row.State, "to", now.State)
	}
	written, err := s.store.Modify(context.WithoutCancel(ctx), row.ID, func(current *store.Sandbox) error {
		if current.Version != row.Version {
			return store.ErrConflict
		}
		*current = now
		return nil
	})
	if errors.Is(err, store.ErrConflict) { // somebody knows better
		return s.store.Get(ctx, row.ID)
	}
	return written, err
}

// observed is row as the agent describes the sandbox. What is between two states stays what it was.
func observed(row store.Sandbox, sb agentclient.Sandbox) store.Sandbox {
	switch {
	case sb.State == agentclient.StatePaused && row.State == store.Running:
		row.State, row.FilesOnly = store.Paused, row.PauseFilesOnly
		if !sb.PausedAt.IsZero() {
			row.EndAt = sb.PausedAt
		}
	case sb.State == agentclient.StateRunning && row.State == store.Paused:
		row.State, row.FilesOnly = store.Running, false
	}
	if sb.State == agentclient.StateRunning && !sb.Deadline.IsZero() {
		row.EndAt = sb.Deadline
	}
	if sb.Network != nil {
		setRules(&row, egress.Rules(*sb.Network))
	}
	return row
}

// reconcileStray settles a sandbox that the store does not know. A row is written before its agent is asked,
// so a stray is what a lost create or a lost kill has left behind. It returns why the sandbox has to be
// removed, if it has to.
func (s *server) reconcileStray(ctx context.Context, id string, before, now suspicion) (why string, err error) {
	_, err = s.store.Get(ctx, id)
	if err == nil {
		return "", nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return "", err
	}
	if !before.stray[id] {
		now.stray[id] = true
		return "", nil
	}
	return "the store does not know it", nil
}

// remove has the agent destroy a sandbox and then deletes its row, if any.
func (s *server) remove(ctx context.Context, agent *agentclient.Client, id, why string) error {
	err := agent.Destroy(ctx, id)
	if err != nil && !errors.Is(err, agentclient.ErrNotFound) {
		return err
	}
	if err == nil {
		s.cfg.Logger.InfoContext(ctx, "sandbox removed", "sandbox", id, "agent", agent.Name(), "why", why)
	}
	return s.store.Delete(ctx, id)
}
