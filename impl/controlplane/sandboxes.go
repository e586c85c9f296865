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
// whose time is over is paused or reaped by its agent, so there the agent is asked what has become of it.
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
		if err == nil && ended(now.State) {
			return row, nil, notFound(id)
		}
		if err != nil {
			return row, agent, s.forget(ctx, id, err)
		}
		if row, err = s.adopt(ctx, row, now); errors.Is(err, store.ErrNotFound) {
			err = notFound(id)
		}
		return row, agent, err
	}
	return row, agent, nil
}

// ended says whether a sandbox in that state can no longer be used.
func ended(state agentclient.State) bool {
	return state == agentclient.StateDestroying || state == agentclient.StateGone || state == agentclient.StateFailed
}

// forget turns an agent's error into the client's. If the agent no longer has the sandbox, so does the
// store. A paused one, which may be all that is left of somebody's work, needs a second observation: the row
// is left to reconciling.
func (s *server) forget(ctx context.Context, id string, err error) error {
	if !errors.Is(err, agentclient.ErrNotFound) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	row, err := s.store.Get(ctx, id)
	if err == nil && row.State != store.Paused {
		err = s.store.DeleteVersion(ctx, id, row.Version)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
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
		Network: describeNetwork(row), Lifecycle: lifecycle{OnTimeout: row.OnTimeout, AutoResume: row.AutoResume},
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
	if err = agent.Destroy(ctx, id); errors.Is(err, agentclient.ErrConflict) {
		// It is between two states, such as pausing, and its agent lets that come to an end first.
		if _, err := s.settled(ctx, agent, id); err == nil || errors.Is(err, agentclient.ErrNotFound) {
			again = again || err != nil
		}
		err = agent.Destroy(ctx, id)
	}
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

// extend moves a running sandbox's end, at the agent first, since it is the one that reaps.
func (s *server) extend(r *http.Request, timeout time.Duration, extendOnly bool) error {
	id := r.PathValue("sandboxID")
	row, agent, err := s.live(r.Context(), id)
	if err != nil {
		return err
	}
	if row.State == store.Paused {
		return refuse(http.StatusConflict, "sandbox %q is paused, so its time does not run: connect to it with a timeout", id)
	}
	_, err = s.setEnd(context.WithoutCancel(r.Context()), agent, id, timeout, extendOnly)
	return err
}

// setEnd moves the end of a sandbox that runs. ErrConflict of the agent tells that it does not.
func (s *server) setEnd(ctx context.Context, agent *agentclient.Client, id string, timeout time.Duration, extendOnly bool) (store.Sandbox, error) {
	// Zero seconds, which the contract allows, is at once; an agent's shortest is a second.
	end, err := agent.SetDeadline(ctx, id, max(timeout, time.Second), extendOnly)
	if err != nil {
		return store.Sandbox{}, s.forget(ctx, id, err)
	}
	return s.modify(ctx, id, func(sb *store.Sandbox) { sb.EndAt = end })
}

// modify changes the row of a sandbox that is not being destroyed; else a 404.
func (s *server) modify(ctx context.Context, id string, change func(*store.Sandbox)) (store.Sandbox, error) {
	row, err := s.store.Modify(ctx, id, func(sb *store.Sandbox) error {
		if sb.State == store.Destroying {
			return notFound(id)
		}
		change(sb)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return row, notFound(id)
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
	if err := s.extend(r, time.Duration(body.Timeout)*time.Second, false); err != nil {
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
	if err := s.extend(r, time.Duration(body.Duration)*time.Second, true); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
