package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/store"
	"wrenn/impl/store/storetest"
)

// childEnv makes the test binary the child of TestWhatWasAcknowledgedSurvivesAKill.
const childEnv = "WRENN_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), path)
	require.NoError(t, err)
	return s
}

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *store.Store {
		return open(t, filepath.Join(t.TempDir(), "odd name?#%.db"))
	})
}

func TestU03_TheFileIsPrivateAndHoldsNoKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	key := store.NewAPIKey()
	require.NoError(t, s.AddKey(t.Context(), "name-of-the-key", key))
	files, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var all []byte
	for _, f := range files {
		info, err := os.Stat(f)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), f)
		raw, err := os.ReadFile(f)
		require.NoError(t, err)
		all = append(all, raw...)
	}
	assert.True(t, bytes.Contains(all, []byte("name-of-the-key")), "the test looks into the right files")
	assert.False(t, bytes.Contains(all, []byte(key)))
	assert.False(t, bytes.Contains(all, []byte(strings.TrimPrefix(key, "e2b_"))))
	require.NoError(t, s.Close())
}

func TestOpenAgainFindsWhatWasThereAndChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	require.NoError(t, s.Insert(t.Context(), store.Sandbox{ID: "a", State: store.Running}))
	beside := open(t, path) // a second one at the same time
	got, err := beside.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.EqualValues(t, 1, got.Version)
	require.NoError(t, beside.Close())
	require.NoError(t, s.Close())
	s = open(t, path)
	_, err = s.Get(t.Context(), "a")
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	_, err := store.Open(t.Context(), filepath.Join(dir, "none", "s.db"))
	require.ErrorContains(t, err, "none")
	junk := filepath.Join(dir, "junk.db")
	require.NoError(t, os.WriteFile(junk, bytes.Repeat([]byte("not a database "), 1000), 0o600))
	_, err = store.Open(t.Context(), junk)
	require.ErrorContains(t, err, "junk.db")
	_, err = store.Open(t.Context(), "")
	require.Error(t, err)
}

// Durability rests on these settings; a kill alone would not show a missing fsync.
func TestCommitsReachTheDiskBeforeTheyAreAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	defer func() { require.NoError(t, s.Close()) }()
	full, wal := s.Durability(t.Context())
	assert.Equal(t, "2", full, "PRAGMA synchronous: 2 is FULL")
	assert.Equal(t, "wal", wal)
}

func TestWhatWasAcknowledgedSurvivesAKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	var acknowledged []string
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path, fmt.Sprintf("ROUND=%d", round))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		hang := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for n := 0; n < 20+7*round && lines.Scan(); n++ {
			acknowledged = append(acknowledged, lines.Text())
		}
		require.NoError(t, cmd.Process.Kill()) // SIGKILL, in the middle of its writes
		for lines.Scan() {
			acknowledged = append(acknowledged, lines.Text())
		}
		_ = cmd.Wait()
		hang.Stop()
	}
	require.GreaterOrEqual(t, len(acknowledged), 60)
	s := open(t, path)
	defer func() { require.NoError(t, s.Close()) }()
	for _, line := range acknowledged {
		id, disk, _ := strings.Cut(line, " ")
		sb, err := s.Get(t.Context(), id)
		require.NoError(t, err, "acknowledged and lost")
		assert.GreaterOrEqual(t, fmt.Sprint(sb.DiskMiB), disk)
	}
}

// child writes without end and prints each write that was acknowledged.
func child(path string) {
	s, err := store.Open(context.Background(), path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("r%ss%d", os.Getenv("ROUND"), i)
		err := s.Insert(context.Background(), store.Sandbox{ID: id, State: store.Running})
		if err == nil {
			fmt.Println(id, 0)
			_, err = s.Modify(context.Background(), id, func(sb *store.Sandbox) error { sb.DiskMiB = 1; return nil })
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(id, 1)
	}
}

func BenchmarkGet(b *testing.B) {
	s, err := store.Open(b.Context(), filepath.Join(b.TempDir(), "s.db"))
	require.NoError(b, err)
	defer func() { require.NoError(b, s.Close()) }()
	require.NoError(b, s.Insert(b.Context(), store.Sandbox{ID: "a", State: store.Running}))
	for b.Loop() {
		if _, err := s.Get(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInsert(b *testing.B) {
	s, err := store.Open(b.Context(), filepath.Join(b.TempDir(), "s.db"))
	require.NoError(b, err)
	defer func() { require.NoError(b, s.Close()) }()
	for i := 0; b.Loop(); i++ {
		if err := s.Insert(b.Context(), store.Sandbox{ID: fmt.Sprint(i), State: store.Running}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestRecentRowsOfAnotherProcessAreASecondOldAtMost: a Store cannot see what is written past it.
func TestRecentRowsOfAnotherProcessAreASecondOldAtMost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wrenn.db")
	one, other := open(t, path), open(t, path)
	defer func() { require.NoError(t, errors.Join(one.Close(), other.Close())) }()
	require.NoError(t, one.Insert(t.Context(), store.Sandbox{ID: "a", State: store.Running}))
	_, err := one.GetRecent(t.Context(), "a")
	require.NoError(t, err)
	require.NoError(t, other.Delete(t.Context(), "a"))
	require.Eventually(t, func() bool {
		_, err := one.GetRecent(t.Context(), "a")
		return errors.Is(err, store.ErrNotFound)
	}, 30*time.Second, 10*time.Millisecond)
}
