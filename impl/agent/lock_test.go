package agent

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

// The tests of this package have a /run of their own.
func TestOneAgentPerHost(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	unlock, err := lockHost(t.Context(), record{Dir: dir})
	require.NoError(t, err)
	_, err = lockHost(t.Context(), record{Dir: dir})
	require.ErrorContains(t, err, "another agent runs on this host (pid ")
	require.NoError(t, unlock())
	assert.NoFileExists(t, lockPath)
	assert.NoFileExists(t, recordPath)

	// Many that come and go at once: never two at a time.
	var holders, most atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				unlock, err := lockHost(t.Context(), record{Dir: dir})
				if err != nil {
					continue
				}
				if n := holders.Add(1); n > most.Load() {
					most.Store(n)
				}
				holders.Add(-1)
				assert.NoError(t, unlock())
			}
		})
	}
	wg.Wait()
	assert.EqualValues(t, 1, most.Load())
}

func TestF01_SandboxesOfAnotherDirectoryAreNotTakenOver(t *testing.T) {
	need.Root(t)
	first, second := t.TempDir(), t.TempDir()
	unlock, err := lockHost(t.Context(), record{Dir: first})
	require.NoError(t, err)
	left := filepath.Join(first, "sandboxes", "abc")
	require.NoError(t, os.MkdirAll(left, 0o700))
	require.NoError(t, unlock())
	_, err = lockHost(t.Context(), record{Dir: second})
	require.ErrorContains(t, err, first)
	assert.NoFileExists(t, lockPath)
	unlock, err = lockHost(t.Context(), record{Dir: first})
	require.NoError(t, err)
	require.NoError(t, os.Remove(left))
	require.NoError(t, unlock())
	unlock, err = lockHost(t.Context(), record{Dir: second})
	require.NoError(t, err)
	require.NoError(t, unlock())
}

// TestN06_LookingAtTheLockHindersNobody: `wrenn doctor` looks while agents start.
func TestN06_LookingAtTheLockHindersNobody(t *testing.T) {
	need.Root(t)
	runs, err := agentRuns()
	require.NoError(t, err)
	assert.False(t, runs)
	dir := t.TempDir()
	for range 5 {
		looker, err := os.OpenFile(lockPath, os.O_RDONLY|os.O_CREATE, 0o600)
		require.NoError(t, err)
		require.NoError(t, unix.Flock(int(looker.Fd()), unix.LOCK_SH))
		time.AfterFunc(time.Millisecond, func() { looker.Close() })
		unlock, err := lockHost(t.Context(), record{Dir: dir, Addr: "127.0.0.1:1"})
		require.NoError(t, err)
		addr, of, runs, err := Running()
		require.NoError(t, err)
		assert.True(t, runs)
		assert.Equal(t, []string{"127.0.0.1:1", dir}, []string{addr, of})
		require.NoError(t, unlock())
	}

	// A lock that a crash left is nobody's, and its address not to be asked.
	require.NoError(t, os.WriteFile(lockPath, []byte("1"), 0o600))
	defer os.Remove(lockPath)
	_, _, runs, err = Running()
	require.NoError(t, err)
	assert.False(t, runs)
}
