package controlplane

import (
	"context"
	"errors"
	"net/http"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// headerServerTiming tells how long each phase took where the answer has no body for it. It is the
// standard's (W3C Server Timing), so browsers show it too.
const headerServerTiming = "Server-Timing"

// stageStore is when the store takes in what an agent has done; the stages before it are the agent's.
const stageStore = "store"

// pause stops a sandbox and keeps its memory and disk, or its disk alone.
func (s *server) pause(w http.ResponseWriter, r *http.Request) error {
	begin := time.Now()
	body := struct {
		Memory *bool `json:"memory"`
	}{}
	if err := decode(r, &body); err != nil {
		return err
	}
	filesOnly := body.Memory != nil && !*body.Memory
	id := r.PathValue("sandboxID")
	done, err := s.turns.take(r.Context(), id)
	if err != nil {
		return err
	}
	defer done()
	row, agent, err := s.live(r.Context(), id)
	if err != nil {
		return err
	}
	if row.State == store.Paused {
		return alreadyPaused(id)
	}
	// What has begun is brought to an end, even if the client hangs up.
	ctx := context.WithoutCancel(r.Context())
	paused, phases, err := s.askPause(ctx, agent, id, filesOnly)
	if errors.Is(err, agentclient.ErrConflict) {
		return s.explainConflict(r.Context(), agent, row, err)
	}
	if err != nil {
		return s.forget(ctx, id, err)
	}
	storing := time.Now()
	_, err = s.modify(ctx, id, func(sb *store.Sandbox) {
		sb.State, sb.FilesOnly = store.Paused, filesOnly
		if !paused.PausedAt.IsZero() {
			sb.EndAt = paused.PausedAt
		}
	})
	if err != nil {
		return err
	}
	phases = append(phases, agentclient.Stage{Name: stageStore, Duration: time.Since(storing)})
	s.cfg.Logger.InfoContext(ctx, "sandbox paused", "sandbox", id, "files only", filesOnly, "took", time.Since(begin), "phases", phases)
	setTimings(w, phases, time.Since(begin))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func alreadyPaused(id string) error {
	return refuse(http.StatusConflict, "sandbox %q is paused already", id)
}

// askPause has the agent pause a sandbox. If its answer was lost, the agent is asked what came of it.
func (s *server) askPause(ctx context.Context, agent *agentclient.Client, id string, filesOnly bool) (agentclient.Sandbox, []agentclient.Stage, error) {
	paused, phases, err := agent.Pause(ctx, id, filesOnly)
	if errors.Is(err, agentclient.ErrUnreachable) {
		if found, again := s.settled(ctx, agent, id); again == nil && found.State == agentclient.StatePaused {
			return found, nil, nil
		}
	}
	return paused, phases, err
}

// explainConflict says why a running sandbox could not be paused. Most often its agent was at it by itself.
func (s *server) explainConflict(ctx context.Context, agent *agentclient.Client, row store.Sandbox, refused error) error {
	row, err := s.catchUp(ctx, agent, row)
	if err != nil {
		return err
	}
	if row.State == store.Paused {
		return alreadyPaused(row.ID)
	}
	return refused
}

// changing says whether a sandbox in that state will soon be in another one.
func changing(state agentclient.State) bool {
	return state == agentclient.StateCreating || state == agentclient.StatePausing || state == agentclient.StateResuming
}

// Bounds of waiting for a sandbox that is between two states: an agent takes milliseconds for some changes and
// minutes for others.
const (
	settleFirst = 20 * time.Millisecond
	settleMost  = time.Second
)

// settled asks the agent for a sandbox until it is not between two states, for as long as a pause may take.
func (s *server) settled(ctx context.Context, agent *agentclient.Client, id string) (agentclient.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, agentclient.PauseTimeout)
	defer cancel()
	for pause := settleFirst; ; pause = min(2*pause, settleMost) {
		found, err := agent.Get(ctx, id)
		if err != nil || !changing(found.State) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return found, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// catchUp waits until a sandbox is not between two states and brings its row up to date.
func (s *server) catchUp(ctx context.Context, agent *agentclient.Client, row store.Sandbox) (store.Sandbox, error) {
	found, err := s.settled(ctx, agent, row.ID)
	switch {
	case err != nil:
		return row, s.forget(ctx, row.ID, err)
	case ended(found.State):
		return row, notFound(row.ID)
	case changing(found.State):
		return row, refuse(http.StatusConflict, "sandbox %q is %s, try again", row.ID, found.State)
	}
	if row, err = s.adopt(ctx, row, found); errors.Is(err, store.ErrNotFound) {
		return row, notFound(row.ID)
	}
	return row, err
}
