package controlplane

import (
	"context"
	"errors"
	"net/http"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// live returns the row of a sandbox that a client may know of, and its agent; else a 404 or 409. A sandbox
// whose time is over is reaped by its agent, so there the agent is asked whether it is still there.
func (s *server) live(ctx context.Context, id string) (store.Sandbox, *agentclient.Client, error) {
	row, err := s.store.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return row, nil, notFound(id)
	}
	if err != nil {
		return row, nil, err
	}
	switch row.State {
	case store.Creating:
		return row, nil, notFound(id) // nobody has been told of it yet
	case store.Destroying:
		return row, nil, refuse(http.StatusConflict, "sandbox %q is being destroyed", id)
	default:
	}
	agent := s.agent(row.Agent)
	if agent == nil {
		return row, nil, refuse(http.StatusServiceUnavailable, "the host of sandbox %q is not configured here", id)
	}
	if row.State == store.Running && !time.Now().Before(row.EndAt) {
		now, err := agent.Get(ctx, id)
		if err == nil && !ended(now.State) {
			return row, agent, nil
		}
		if err == nil {
			return row, nil, notFound(id)
		}
		return row, agent, s.forget(ctx, id, err)
	}
	return row, agent, nil
}

// ended says whether a sandbox in that state can no longer be used.
func ended(state agentclient.State) bool {
	return state == agentclient.StateDestroying || state == agentclient.StateGone || state == agentclient.StateFailed
}

// forget turns an agent's error into the client's. If the agent no longer has the sandbox, so does the store.
func (s *server) forget(ctx context.Context, id string, err error) error {
	if !errors.Is(err, agentclient.ErrNotFound) {
		return err
	}
	if err := s.store.Delete(context.WithoutCancel(ctx), id); err != nil {
		return err
	}
	return notFound(id)
}

func (s *server) get(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("sandboxID")
	row, _, err := s.live(r.Context(), id)
	if row.State == store.Destroying {
		return notFound(id)
	}
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, sandboxDetail{
		listedSandbox: listed(row), Domain: s.domain(), AllowInternet: row.AllowInternet,
		Network: describeNetwork(row), Lifecycle: lifecycle{OnTimeout: row.OnTimeout},
	})
	return nil
}

// kill writes down that the sandbox is unwanted before it asks the agent, so that a lost agent or a crash
// only delays the end. A kill of a sandbox that is already being destroyed tries again.
func (s *server) kill(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("sandboxID")
	ctx := context.WithoutCancel(r.Context())
	s.killing.Store(id, nil)
	defer s.killing.Delete(id)
	var again bool
	row, err := s.store.Modify(ctx, id, func(sb *store.Sandbox) error {
		if sb.State == store.Creating {
			return notFound(id)
		}
		again = sb.State == store.Destroying
		sb.State = store.Destroying
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return notFound(id)
	}
	if err != nil {
		return err
	}
	agent := s.agent(row.Agent)
	if agent == nil {
		return refuse(http.StatusServiceUnavailable, "the host of sandbox %q is not configured here; it is destroyed when it comes back", id)
	}
	err = agent.Destroy(ctx, id)
	switch {
	case errors.Is(err, agentclient.ErrUnreachable):
		return refuse(http.StatusServiceUnavailable, "the host of sandbox %q does not answer now; it is destroyed when it does", id)
	case errors.Is(err, agentclient.ErrNotFound) && !again:
		return s.forget(ctx, id, err)
	case err != nil && !errors.Is(err, agentclient.ErrNotFound):
		return err
	}
	if err := s.store.Delete(ctx, id); err != nil {
		return err
	}
	s.cfg.Logger.InfoContext(ctx, "sandbox killed", "sandbox", id)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// extend moves a sandbox's end, at the agent first, since it is the one that reaps.
func (s *server) extend(r *http.Request, timeout time.Duration, extendOnly bool) (store.Sandbox, error) {
	row, agent, err := s.live(r.Context(), r.PathValue("sandboxID"))
	if err != nil {
		return row, err
	}
	ctx := context.WithoutCancel(r.Context())
	// Zero seconds, which the contract allows, is at once; an agent's shortest is a second.
	end, err := agent.SetDeadline(ctx, row.ID, max(timeout, time.Second), extendOnly)
	if err != nil {
		return row, s.forget(ctx, row.ID, err)
	}
	row, err = s.store.Modify(ctx, row.ID, func(sb *store.Sandbox) error {
		sb.EndAt = end
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return row, notFound(r.PathValue("sandboxID"))
	}
	return row, err
}

func (s *server) timeout(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Timeout int64 `json:"timeout"`
	}
	if err := decode(r, &body); err != nil {
		return err
	}
	if _, err := s.extend(r, time.Duration(body.Timeout)*time.Second, false); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) refresh(w http.ResponseWriter, r *http.Request) error {
	body := struct {
		Duration int64 `json:"duration"`
	}{Duration: int64(defaultTimeoutV1 / time.Second)}
	if err := decode(r, &body); err != nil {
		return err
	}
	if _, err := s.extend(r, time.Duration(body.Duration)*time.Second, true); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// connect returns the handler of a connect whose default timeout is given. It never brings the end forward.
func (s *server) connect(timeout time.Duration) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		body := struct {
			Timeout int64 `json:"timeout"`
		}{Timeout: int64(timeout / time.Second)}
		if err := decode(r, &body); err != nil {
			return err
		}
		row, err := s.extend(r, time.Duration(body.Timeout)*time.Second, true)
		if err != nil {
			return err
		}
		answer(w, http.StatusOK, s.reply(row))
		return nil
	}
}
