// Package drift_test pauses and resumes machines until something in them would show that it is not what it was.
package drift_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/need"
	"wrenn/impl/transport"
)

func TestMain(m *testing.M) { harness.MainOnOwnHost(m) }

// port is where the program in the guests answers.
const port = 7000

// system is Wrenn with guests that run the program.
type system struct {
	*harness.System
	t    *testing.T
	http *http.Client
}

func start(t *testing.T) *system {
	t.Helper()
	need.Root(t)
	rt := transport.NewProxyTransport()
	t.Cleanup(rt.CloseIdleConnections)
	s := harness.Start(t, harness.Dir(t), "--resolver", "192.0.2.53")
	return &system{t: t, System: s, http: &http.Client{Transport: rt}}
}

// run makes a sandbox with the program running in it.
func (s *system) run(heapMiB int) apiclient.Sandbox {
	s.t.Helper()
	program, err := os.ReadFile(harness.Drift(s.t))
	require.NoError(s.t, err)
	box := s.Create()
	ctx, cancel := context.WithTimeout(s.t.Context(), harness.Patience)
	defer cancel()
	const path = "/home/user/drift"
	require.NoError(s.t, s.Guest(box).WriteFile(ctx, "", path, bytes.NewReader(program), int64(len(program))))
	s.Exec(box, "/bin/sh", "-ec", fmt.Sprintf("chmod +x %[1]s; setsid %[1]s --listen :%[2]d --heap %[3]d >/home/user/drift.log 2>&1 </dev/null & ", path, port, heapMiB))
	require.Eventually(s.t, func() bool { _, err := s.try(box, http.MethodGet, "/check"); return err == nil },
		harness.Patience, 200*time.Millisecond, "the program does not answer")
	return box
}

// report is what the program says of itself.
type report struct {
	Wrong []string         `json:"wrong"`
	Moves map[string]int64 `json:"moves"`
	Wall  int64            `json:"wall"`
	PID   int              `json:"pid"`
	// before and after are this machine's clock around the question.
	before, after time.Time
}

func (s *system) try(box apiclient.Sandbox, method, path string) (r report, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.SandboxURL+path, nil)
	if err != nil {
		return r, err
	}
	req.Host = fmt.Sprintf("%d-%s.localhost", port, box.SandboxID)
	r.before = time.Now()
	resp, err := s.http.Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	r.after = time.Now()
	switch {
	case err != nil:
		return r, err
	case resp.StatusCode != http.StatusOK:
		return r, fmt.Errorf("%s: %s", resp.Status, body)
	case len(body) == 0:
		return r, nil
	}
	return r, json.Unmarshal(body, &r)
}

// check asks the program to look at everything, and finds that nothing is wrong and all has moved since.
func (s *system) check(box apiclient.Sandbox, since report) report {
	s.t.Helper()
	r, err := s.try(box, http.MethodGet, "/check")
	require.NoError(s.t, err)
	require.Empty(s.t, r.Wrong, "the machine has drifted")
	if since.PID != 0 {
		require.Equal(s.t, since.PID, r.PID, "it is another process")
		for part, moves := range since.Moves {
			require.GreaterOrEqual(s.t, r.Moves[part], moves, "%s has gone back in time", part)
		}
	}
	return r
}

// moved waits until each part has moved on.
func (s *system) moved(box apiclient.Sandbox, since report) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		r := s.check(box, since)
		for part, moves := range since.Moves {
			if r.Moves[part] <= moves {
				return false
			}
		}
		return true
	}, harness.Patience, 50*time.Millisecond, "something stands still")
}

// clockError is how far the guest's clock is off at least, given when it was asked.
func (r report) clockError() time.Duration {
	wall := time.Unix(0, r.Wall)
	switch {
	case wall.Before(r.before):
		return r.before.Sub(wall)
	case wall.After(r.after):
		return wall.Sub(r.after)
	}
	return 0
}

func (s *system) dirty(box apiclient.Sandbox, mib int) {
	s.t.Helper()
	_, err := s.try(box, http.MethodPost, fmt.Sprintf("/dirty?mib=%d", mib))
	require.NoError(s.t, err)
}

func (s *system) pause(box apiclient.Sandbox) []apiclient.Stage {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), harness.Patience)
	defer cancel()
	phases, err := s.Client.Pause(ctx, box.SandboxID, false)
	require.NoError(s.t, err)
	return phases
}

func (s *system) resume(box apiclient.Sandbox) apiclient.Sandbox {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), harness.Patience)
	defer cancel()
	resumed, err := s.Client.Connect(ctx, box.SandboxID, 3600)
	require.NoError(s.t, err)
	return resumed
}

// end ends everything in an orderly way.
func (s *system) end() {
	s.t.Helper()
	s.Stop()
}

// total is the last phase's time, which is that of all.
func total(phases []apiclient.Stage) float64 {
	if len(phases) == 0 {
		return 0
	}
	return phases[len(phases)-1].Ms
}

func closeEnough(t *testing.T, r report) {
	t.Helper()
	assert.LessOrEqual(t, r.clockError(), 500*time.Millisecond, "the guest's clock")
}
