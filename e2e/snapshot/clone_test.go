package snapshot_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

// TestS09_ClonesAreDistinct: many machines of one snapshot have its files, memory and processes, and share
// neither randomness nor names; the machine that it was taken of goes on.
func TestS09_ClonesAreDistinct(t *testing.T) {
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	source := s.Create()
	pid := strings.TrimSpace(s.Exec(source, "sh", "-c", "echo of the source >file; echo in memory >/dev/shm/file; setsid sleep 100000 >/dev/null 2>&1 & echo $!"))
	ctx, cancel := context.WithTimeout(t.Context(), 3*harness.Patience)
	defer cancel()
	snap, phases, err := s.Client.CreateSnapshot(ctx, source.SandboxID, "gold")
	require.NoError(t, err)
	t.Logf("snapshot %s: %v", snap.SnapshotID, phases)
	s.Exec(source, "sh", "-c", "echo afterwards >file")

	clones := make([]apiclient.Sandbox, 2)
	var wg sync.WaitGroup
	for i := range clones {
		wg.Go(func() {
			var err error
			clones[i], err = s.TryCreate(apiclient.CreateRequest{TemplateID: snap.SnapshotID, Timeout: 3600})
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	seen := map[string]string{}
	for i, box := range append(clones, source) {
		require.NotEmpty(t, box.SandboxID)
		for what, script := range map[string]string{
			"machine-id": "cat /etc/machine-id", "hostname": "hostname", "random bytes": "head -c 16 /dev/urandom | od -An -tx1",
			"a uuid": "cat /proc/sys/kernel/random/uuid",
		} {
			value := strings.TrimSpace(s.Exec(box, "sh", "-c", script))
			assert.NotContains(t, seen, value, "%s of two machines is the same", what)
			seen[value] = what
		}
		assert.Equal(t, box.SandboxID+"\n", s.Exec(box, "cat", "/etc/hostname"))
		assert.Equal(t, "sleep\n", s.Exec(box, "cat", fmt.Sprintf("/proc/%s/comm", pid)), "the process is not there")
		assert.Less(t, clockOff(t, s, box), 500*time.Millisecond)
		assert.Equal(t, "in memory\n", s.Exec(box, "cat", "/dev/shm/file"))
		want := "of the source\n"
		if i == len(clones) {
			want = "afterwards\n"
		} else if assert.NotNil(t, box.Wrenn) {
			assert.Equal(t, "restored", box.Wrenn.BootPath)
		}
		assert.Equal(t, want, s.Exec(box, "cat", "file"))
	}
	// A clone has a life of its own, with pauses.
	s.Exec(clones[0], "sh", "-c", "echo own >file")
	cycle(t, s, clones[0].SandboxID, 0)
	assert.Equal(t, "own\n", s.Exec(clones[0], "cat", "file"))
	assert.Equal(t, "of the source\n", s.Exec(clones[1], "cat", "file"))
	s.Stop()
	before.Same(t)
}

// TestS05_APausedSandboxSurvivesTheAgent, killed and started again.
func TestS05_APausedSandboxSurvivesTheAgent(t *testing.T) {
	before := harness.Take(t)
	dir := harness.Dir(t)
	s := harness.Start(t, dir)
	box := s.Create()
	s.Exec(box, "sh", "-c", "echo kept >file; echo in memory >/dev/shm/file")
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	defer cancel()
	_, err := s.Client.Pause(ctx, box.SandboxID, false)
	require.NoError(t, err)
	s.Kill()
	s = harness.Start(t, dir)
	_, err = s.Client.Resume(ctx, box.SandboxID, 600, false)
	require.NoError(t, err)
	assert.Equal(t, "kept\nin memory\n", s.Exec(box, "cat", "file", "/dev/shm/file"))
	s.Stop()
	before.Same(t)
}
