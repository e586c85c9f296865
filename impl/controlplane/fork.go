package controlplane

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// forkers is how many forks of one request are made at a time: more would only share the host's disk and
// cores, and starve other requests.
const forkers = 8

// forkPrefix begins the names of snapshots that live for as long as a fork takes. Nobody else's has a dash at
// that place.
const forkPrefix = "fork-"

// forkResult is one fork or why there is none.
type forkResult struct {
	Sandbox *sandboxReply `json:"sandbox,omitempty"`
	Error   *forkError    `json:"error,omitempty"`
}

type forkError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// fork makes copies of a sandbox: one snapshot of it, from which all of them start. It goes on itself, with
// its end as it was.
func (s *server) fork(w http.ResponseWriter, r *http.Request) error {
	begin := time.Now()
	body := struct {
		Timeout int64 `json:"timeout"`
		Count   int   `json:"count"`
	}{Timeout: int64(defaultTimeoutV1 / time.Second), Count: 1}
	if err := decode(r, &body); err != nil {
		return err
	}
	id, name := r.PathValue("sandboxID"), forkPrefix+newID()
	source, agent, _, phases, err := s.takeSnapshot(r.Context(), id, name)
	if err != nil {
		if errors.Is(err, agentclient.ErrUnreachable) { // it may have come about all the same
			s.dropSnapshot(context.WithoutCancel(r.Context()), agent.Name(), name)
		}
		return err
	}
	defer s.dropSnapshot(context.WithoutCancel(r.Context()), agent.Name(), name)
	row := copyOf(source, max(time.Duration(body.Timeout)*time.Second, time.Second))
	results := make([]forkResult, body.Count)
	var group errgroup.Group
	group.SetLimit(forkers)
	for i := range results {
		group.Go(func() error {
			results[i] = s.forkOnce(r.Context(), origin{agent: agent, name: source.Template, snapshot: name}, row)
			return nil
		})
	}
	_ = group.Wait() // each has its own result
	s.cfg.Logger.InfoContext(r.Context(), "sandbox forked", "sandbox", id, "count", body.Count, "took", time.Since(begin), "phases", phases)
	setTimings(w, phases, time.Since(begin))
	answer(w, http.StatusCreated, results)
	return nil
}

func (s *server) forkOnce(client context.Context, from origin, row store.Sandbox) forkResult {
	begin := time.Now()
	row, made, err := s.makeSandbox(client, from, row, agentclient.CreateRequest{})
	if err != nil {
		refused := asRefusal(err)
		s.cfg.Logger.WarnContext(client, "a fork failed", "snapshot", from.snapshot, "error", err)
		return forkResult{Error: &forkError{Code: refused.code, Message: refused.message}}
	}
	out := s.reply(row)
	out.Wrenn = report(made.BootPath, made.Stages, time.Since(begin))
	return forkResult{Sandbox: &out}
}

// copyOf is the row of a sandbox like source.
func copyOf(source store.Sandbox, timeout time.Duration) store.Sandbox {
	source.Timeout, source.Version, source.FilesOnly = timeout, 0, false
	return source // makeSandbox gives it an id, a state and times of its own
}

// isFork says whether a snapshot of that name belongs to a fork.
func isFork(name string) bool { return strings.HasPrefix(name, forkPrefix) }
