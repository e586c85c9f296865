// Package snapshot_test drives the whole of Wrenn through pauses, resumes, snapshots and clones of real
// machines.
package snapshot_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

func TestMain(m *testing.M) { harness.MainOnOwnHost(m) }

// cycle is what the tests do with a sandbox: it is paused, for a while, and resumed.
func cycle(t *testing.T, s *harness.System, id string, rest time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	phases, err := s.Client.Pause(ctx, id, false)
	require.NoError(t, err)
	t.Logf("pause: %v", phases)
	time.Sleep(rest)
	_, err = s.Client.Resume(ctx, id, 3600, false)
	require.NoError(t, err)
}

// clockOff is how far the guest's clock is off, give or take the time that it takes to ask, which the host's
// clock is taken to be within.
func clockOff(t *testing.T, s *harness.System, box apiclient.Sandbox) time.Duration {
	t.Helper()
	before := time.Now()
	var nanos int64
	_, err := fmt.Sscan(strings.TrimSpace(s.Exec(box, "date", "+%s%N")), &nanos)
	require.NoError(t, err)
	guest, after := time.Unix(0, nanos), time.Now()
	switch {
	case guest.Before(before):
		return before.Sub(guest)
	case guest.After(after):
		return guest.Sub(after)
	}
	return 0
}
