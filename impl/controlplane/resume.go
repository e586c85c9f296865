package controlplane

import (
	"context"
	"errors"
	"net/http"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/portproxy"
	"wrenn/impl/store"
)

// minTrafficTimeout is the shortest life of a sandbox that traffic has resumed, as E2B's: less would make one
// come and go with every request.
const minTrafficTimeout = 300 * time.Second

// wakeTries bounds how often a wake starts again because the agent was ahead of the store. Each time the row
// has been brought up to date, so a second try fails only if the sandbox has changed its state again.
const wakeTries = 3

// wake is how a sandbox is made to run.
type wake struct {
	timeout time.Duration
	// filesOnly leaves a paused sandbox's memory aside.
	filesOnly bool
	// pausedOnly refuses one that runs.
	pausedOnly bool
}

// woken is a sandbox that runs, and how it came to.
type woken struct {
	row store.Sandbox
	// resumed is false when it ran already.
	resumed bool
	report  *bootReport
}

// connect returns the handler of a connect whose default timeout is given. It never brings the end forward.
func (s *server) connect(timeout time.Duration) handler {
	return s.wakeHandler(timeout, false)
}

// resume is E2B's older way. It refuses a sandbox that runs.
func (s *server) resume(w http.ResponseWriter, r *http.Request) error {
	return s.wakeHandler(defaultTimeoutV1, true)(w, r)
}

func (s *server) wakeHandler(timeout time.Duration, pausedOnly bool) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		body := struct {
			Timeout int64 `json:"timeout"`
			Memory  *bool `json:"memory"`
		}{Timeout: int64(timeout / time.Second)}
		if err := decode(r, &body); err != nil {
			return err
		}
		done, err := s.wake(r.Context(), r.PathValue("sandboxID"), wake{
			timeout: time.Duration(body.Timeout) * time.Second, filesOnly: body.Memory != nil && !*body.Memory, pausedOnly: pausedOnly,
		})
		if err != nil {
			return err
		}
		out := s.reply(done.row)
		out.Wrenn = done.report
		code := http.StatusOK
		if done.resumed {
			code = http.StatusCreated
		}
		answer(w, code, out)
		return nil
	}
}

// wake makes a sandbox run, and lets it live for at least how.timeout. What becomes of it at its end stays as
// it was. Waiting for others ends with client; a resume that has begun does not.
func (s *server) wake(client context.Context, id string, how wake) (woken, error) {
	begin := time.Now()
	done, err := s.turns.take(client, id)
	if err != nil {
		return woken{}, err
	}
	defer done()
	for try := 1; ; try++ {
		row, agent, err := s.live(client, id)
		if err != nil {
			return woken{}, err
		}
		out, err := s.wakeOnce(context.WithoutCancel(client), agent, row, how, begin)
		if !errors.Is(err, agentclient.ErrConflict) || try == wakeTries {
			return out, err
		}
		// It is in another state than the store believed, or between two.
		if row, err = s.catchUp(client, agent, row); err != nil {
			return woken{}, err
		}
		if how.pausedOnly && row.State == store.Running {
			return woken{}, alreadyRunning(id)
		}
	}
}

func alreadyRunning(id string) error {
	return refuse(http.StatusConflict, "sandbox %q is running already", id)
}

// wakeOnce does what the row's state asks for. An agent's ErrConflict says that the row is out of date.
func (s *server) wakeOnce(ctx context.Context, agent *agentclient.Client, row store.Sandbox, how wake, begin time.Time) (woken, error) {
	if row.State == store.Running && how.pausedOnly {
		// The agent may have paused it by itself.
		found, err := agent.Get(ctx, row.ID)
		switch {
		case err != nil:
			return woken{}, s.forget(ctx, row.ID, err)
		case found.State == agentclient.StateRunning:
			return woken{}, alreadyRunning(row.ID)
		}
		return woken{}, agentclient.ErrConflict
	}
	if row.State == store.Running {
		row, err := s.setEnd(ctx, agent, row.ID, how.timeout, true)
		return woken{row: row}, err
	}
	made, resumed, phases, err := s.askResume(ctx, agent, agentclient.ResumeRequest{
		ID: row.ID, Timeout: max(how.timeout, time.Second), ExtendOnly: true, FilesOnly: how.filesOnly,
	})
	if err != nil {
		return woken{}, s.forget(ctx, row.ID, err)
	}
	storing := time.Now()
	row, err = s.modify(ctx, row.ID, func(sb *store.Sandbox) {
		sb.State, sb.FilesOnly = store.Running, false
		follow(sb, made)
	})
	phases = append(phases, agentclient.Stage{Name: stageStore, Duration: time.Since(storing)})
	if err != nil || !resumed {
		return woken{row: row}, err
	}
	took := time.Since(begin)
	s.cfg.Logger.InfoContext(ctx, "sandbox resumed", "sandbox", row.ID, "boot", made.BootPath, "took", took, "phases", phases)
	return woken{row: row, resumed: true, report: report(made.BootPath, phases, took)}, nil
}

// askResume has the agent resume a sandbox. If its answer was lost, the agent is asked what came of it.
func (s *server) askResume(ctx context.Context, agent *agentclient.Client, req agentclient.ResumeRequest) (agentclient.Sandbox, bool, []agentclient.Stage, error) {
	made, resumed, phases, err := agent.Resume(ctx, req)
	if errors.Is(err, agentclient.ErrUnreachable) {
		if found, again := s.settled(ctx, agent, req.ID); again == nil && found.State == agentclient.StateRunning {
			return found, true, nil, nil
		}
	}
	return made, resumed, phases, err
}

// resumer lets the door to sandboxes' ports make them run.
type resumer struct{ *server }

// sleeps says whether traffic to a sandbox makes it run: it was created so, and it is paused, or its agent is
// about to pause it at its end. Without its memory it would boot anew, which nobody expects of a request.
func sleeps(row store.Sandbox) bool {
	switch row.State {
	case store.Paused:
		return row.AutoResume && !row.FilesOnly
	case store.Running:
		return row.AutoResume && !row.PauseFilesOnly && row.OnTimeout == onTimeoutPause && !time.Now().Before(row.EndAt)
	default:
		return false
	}
}

// Resume makes a sandbox run because somebody wants to reach one of its ports, if it was created so. It
// returns nil once the sandbox runs, and else portproxy.ErrNotFound, ErrTransition, ErrUnreachable or another
// error. It returns when ctx ends, while a resume that has begun goes on.
func (s resumer) Resume(ctx context.Context, id string) error {
	row, err := s.store.Get(ctx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return portproxy.ErrNotFound
	case err != nil:
		return err
	case sleeps(row):
	case row.State == store.Running:
		return nil
	default:
		return portproxy.ErrNotFound
	}
	result := make(chan error, 1)
	go func() {
		_, err := s.wake(context.WithoutCancel(ctx), id, wake{timeout: max(row.Timeout, minTrafficTimeout)})
		result <- err
	}()
	select {
	case err = <-result:
	case <-ctx.Done():
		return ctx.Err()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, agentclient.ErrUnreachable):
		return portproxy.ErrUnreachable
	case asRefusal(err).code == http.StatusNotFound:
		return portproxy.ErrNotFound
	case asRefusal(err).code == http.StatusConflict:
		return portproxy.ErrTransition
	}
	s.cfg.Logger.ErrorContext(ctx, "sandbox could not be resumed for traffic", "sandbox", id, "error", err)
	return err
}
