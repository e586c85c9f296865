// Package storetest is the suite that every back end of the store passes.
package storetest

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/store"
)

// Run runs the suite on stores that open makes: empty ones, closed by the test that asked for it.
func Run(t *testing.T, open func(t *testing.T) *store.Store) {
	for name, test := range map[string]func(*testing.T, *store.Store){
		"a sandbox comes back as it was written":  comesBack,
		"insert refuses a taken id":               refusesTaken,
		"modify writes, counts and rolls back":    modifies,
		"modifies at once lose no change":         modifiesAtOnce,
		"delete by id and by version":             deletes,
		"a recent row is no older than a write":   recentRows,
		"list filters":                            filters,
		"list pages through equal starts":         pages,
		"keys are checked and stored only hashed": keys,
		"snapshots come back":                     snapshotsComeBack,
		"a snapshot takes a name over":            snapshotsTakeNames,
		"snapshots are listed page by page":       snapshotPages,
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			s := open(t)
			defer func() { require.NoError(t, s.Close()) }()
			test(t, s)
		})
	}
}

// epoch is a start whose every digit down to the nanosecond matters.
var epoch = time.Date(2026, 2, 3, 4, 5, 6, 123456789, time.UTC)

// sandbox returns a row that starts n seconds after epoch.
func sandbox(id string, n int) store.Sandbox {
	at := epoch.Add(time.Duration(n) * time.Second)
	return store.Sandbox{
		ID: id, Template: "base", Agent: "one", State: store.Running, Metadata: map[string]string{"n": fmt.Sprint(n)},
		CreatedAt: at, StartedAt: at, EndAt: at.Add(time.Hour), OnTimeout: "kill", AllowInternet: true,
		VCPUs: 2, MemoryMiB: 512, DiskMiB: 1 << 40, EnvdVersion: "0.6.13", Version: 1,
	}
}

func comesBack(t *testing.T, s *store.Store) {
	want := sandbox("a", 0)
	want.Metadata = map[string]string{"k y": "v'\"\x00\u2028ü", "'; DROP TABLE sandboxes; --": "", "": "x"}
	want.AllowOut, want.DenyOut = []string{"192.0.2.0/24", "*.example.com"}, []string{"0.0.0.0/0"}
	want.OnTimeout, want.PauseFilesOnly, want.Timeout = "pause", true, 720*time.Hour
	require.NoError(t, s.Insert(t.Context(), want))
	got, err := s.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, want, got)

	none := sandbox("b", 0)
	none.Metadata, none.AllowInternet = nil, false
	none.AutoResume, none.FilesOnly = true, true
	require.NoError(t, s.Insert(t.Context(), none))
	got, err = s.Get(t.Context(), "b")
	require.NoError(t, err)
	assert.Equal(t, none, got)

	_, err = s.Get(t.Context(), "' OR 1=1 --")
	require.ErrorIs(t, err, store.ErrNotFound)
}

func refusesTaken(t *testing.T, s *store.Store) {
	require.NoError(t, s.Insert(t.Context(), sandbox("a", 0)))
	require.ErrorIs(t, s.Insert(t.Context(), sandbox("a", 9)), store.ErrExists)
	got, err := s.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, sandbox("a", 0), got)
}

func modifies(t *testing.T, s *store.Store) {
	require.NoError(t, s.Insert(t.Context(), sandbox("a", 0)))
	want := sandbox("a", 5)
	want.AllowOut = []string{"192.0.2.1"}
	want.State, want.Template, want.Agent, want.VCPUs, want.Version = store.Destroying, "x", "two", 7, 2
	want.OnTimeout, want.PauseFilesOnly, want.AutoResume, want.Timeout, want.FilesOnly = "pause", true, true, time.Hour, true
	got, err := s.Modify(t.Context(), "a", func(sb *store.Sandbox) error {
		version := sb.Version
		*sb = want
		sb.Version = version
		return nil
	})
	require.NoError(t, err)
	assert.Equal(t, want, got)
	got, err = s.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, want, got)

	refusal := errors.New("no")
	_, err = s.Modify(t.Context(), "a", func(sb *store.Sandbox) error { sb.Template = "y"; return refusal })
	require.ErrorIs(t, err, refusal)
	got, err = s.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, want, got)
	_, err = s.Modify(t.Context(), "none", func(*store.Sandbox) error { return nil })
	require.ErrorIs(t, err, store.ErrNotFound)
}

func modifiesAtOnce(t *testing.T, s *store.Store) {
	require.NoError(t, s.Insert(t.Context(), sandbox("a", 0)))
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for done := 0; done < 10; {
				_, err := s.Modify(t.Context(), "a", func(sb *store.Sandbox) error { sb.DiskMiB++; return nil })
				if err == nil {
					done++
				} else if !errors.Is(err, store.ErrConflict) {
					assert.NoError(t, err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.EqualValues(t, sandbox("a", 0).DiskMiB+50, got.DiskMiB)
	assert.EqualValues(t, 51, got.Version)
}

// recentRows reads rows all the time while they are written: what a writer has been acknowledged, every read that
// begins afterwards has.
func recentRows(t *testing.T, s *store.Store) {
	const rounds = 200
	require.NoError(t, s.Insert(t.Context(), sandbox("a", 0)))
	var acknowledged atomic.Int64
	over := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				least := acknowledged.Load()
				sb, err := s.GetRecent(t.Context(), "a")
				if !assert.NoError(t, err) || !assert.GreaterOrEqual(t, sb.Version, least) {
					return
				}
			}
		})
	}
	for range rounds {
		sb, err := s.Modify(t.Context(), "a", func(sb *store.Sandbox) error { return nil })
		require.NoError(t, err)
		acknowledged.Store(sb.Version)
		got, err := s.GetRecent(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, sb.Version, got.Version)
	}
	close(over)
	readers.Wait()

	again, err := s.GetRecent(t.Context(), "a")
	require.NoError(t, err)
	fresh, err := s.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, fresh, again)
	require.ErrorIs(t, s.DeleteVersion(t.Context(), "a", 1), store.ErrConflict)
	require.NoError(t, s.DeleteVersion(t.Context(), "a", fresh.Version))
	_, err = s.GetRecent(t.Context(), "a")
	require.ErrorIs(t, err, store.ErrNotFound)
	require.NoError(t, s.Insert(t.Context(), sandbox("a", 1)), "an id that was not found is looked for again")
	again, err = s.GetRecent(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, int64(1), again.Version)
	require.NoError(t, s.Delete(t.Context(), "a"))
	_, err = s.GetRecent(t.Context(), "a")
	require.ErrorIs(t, err, store.ErrNotFound)
}

func deletes(t *testing.T, s *store.Store) {
	require.NoError(t, s.Insert(t.Context(), sandbox("a", 0)))
	require.NoError(t, s.Insert(t.Context(), sandbox("b", 0)))
	require.ErrorIs(t, s.DeleteVersion(t.Context(), "a", 2), store.ErrConflict)
	require.NoError(t, s.DeleteVersion(t.Context(), "a", 1))
	_, err := s.Get(t.Context(), "a")
	require.ErrorIs(t, err, store.ErrNotFound)
	require.ErrorIs(t, s.DeleteVersion(t.Context(), "a", 1), store.ErrConflict)
	require.NoError(t, s.Delete(t.Context(), "b"))
	require.NoError(t, s.Delete(t.Context(), "b"))
	list, err := s.List(t.Context(), store.Query{})
	require.NoError(t, err)
	assert.Empty(t, list)
}

func filters(t *testing.T, s *store.Store) {
	for i, id := range []string{"a", "b", "c", "d", "e"} {
		sb := sandbox(id, i)
		switch id {
		case "b":
			sb.State, sb.EndAt = store.Paused, epoch
		case "c":
			sb.Agent, sb.Template = "two", "other"
		case "d":
			sb.EndAt = epoch.Add(time.Minute)
		case "e":
			sb.State, sb.Metadata = store.Creating, map[string]string{"n": "1", "m": "2"}
		}
		require.NoError(t, s.Insert(t.Context(), sb))
	}
	for _, tc := range []struct {
		q    store.Query
		want string
	}{
		{store.Query{}, "edcba"},
		{store.Query{Ascending: true}, "abcde"},
		{store.Query{States: []store.State{store.Running}}, "dca"},
		{store.Query{States: []store.State{store.Paused, store.Creating, store.Paused}}, "eb"},
		{store.Query{Agent: "two"}, "c"},
		{store.Query{Template: "base"}, "edba"},
		{store.Query{Metadata: map[string]string{"n": "1"}}, "eb"},
		{store.Query{Metadata: map[string]string{"n": "1", "m": "2"}}, "e"},
		{store.Query{Metadata: map[string]string{"m": ""}}, ""},
		{store.Query{StartedFrom: epoch.Add(2 * time.Second)}, "edc"},
		{store.Query{StartedFrom: epoch.Add(2*time.Second + 1)}, "ed"},
		{store.Query{LiveAt: epoch.Add(time.Minute)}, "ecba"}, // d is over at that very moment; b is paused
		{store.Query{LiveAt: epoch.Add(time.Minute - 1)}, "edcba"},
		{store.Query{Limit: 2}, "ed"},
		{store.Query{Limit: 1, Metadata: map[string]string{"n": "1"}, Ascending: true}, "b"},
		{store.Query{Agent: "one", Template: "base", States: []store.State{store.Running}, Metadata: map[string]string{"n": "0"}, LiveAt: epoch, StartedFrom: epoch, Limit: 5}, "a"},
	} {
		assert.Equal(t, tc.want, ids(t, s, tc.q), "%+v", tc.q)
	}
	paused := sandbox("p", 9) // at its end it is paused, so it is never gone
	paused.EndAt, paused.OnTimeout = epoch, "pause"
	require.NoError(t, s.Insert(t.Context(), paused))
	assert.Equal(t, "pe", ids(t, s, store.Query{LiveAt: epoch.Add(time.Hour), Limit: 2}))
}

func ids(t *testing.T, s *store.Store, q store.Query) (joined string) {
	t.Helper()
	list, err := s.List(t.Context(), q)
	require.NoError(t, err)
	for _, sb := range list {
		joined += sb.ID
	}
	return joined
}

func pages(t *testing.T, s *store.Store) {
	var want []string
	for i := range 20 {
		id := fmt.Sprintf("s%02d", i)
		want = append(want, id)
		require.NoError(t, s.Insert(t.Context(), sandbox(id, i/6))) // six share a start
	}
	for _, ascending := range []bool{true, false} {
		var got []string
		q := store.Query{Ascending: ascending, Limit: 3}
		for {
			list, err := s.List(t.Context(), q)
			require.NoError(t, err)
			if len(list) == 0 {
				break
			}
			for _, sb := range list {
				got = append(got, sb.ID)
			}
			last := list[len(list)-1]
			q.After = &store.Position{StartedAt: last.StartedAt, ID: last.ID}
		}
		if !ascending {
			slices.Reverse(got)
		}
		assert.Equal(t, want, got, "ascending: %v", ascending)
	}
}

func keys(t *testing.T, s *store.Store) {
	key := store.NewAPIKey()
	assert.Regexp(t, regexp.MustCompile(`^e2b_[0-9a-f]{64}$`), key)
	assert.NotEqual(t, key, store.NewAPIKey())
	_, err := s.CheckKey(t.Context(), key)
	require.ErrorIs(t, err, store.ErrNotFound)
	require.NoError(t, s.AddKey(t.Context(), "first", key))
	require.NoError(t, s.AddKey(t.Context(), "again", key))
	name, err := s.CheckKey(t.Context(), key)
	require.NoError(t, err)
	assert.Equal(t, "first", name)
	for _, wrong := range []string{"", key + "0", key[:len(key)-1], strings.ToUpper(key), "' OR 1=1 --"} {
		_, err := s.CheckKey(t.Context(), wrong)
		require.ErrorIs(t, err, store.ErrNotFound, wrong)
	}
	for _, weak := range []string{"", "e2b_", "e2b_abcd", strings.TrimPrefix(key, "e2b_"), key + "x", "e2b_" + strings.Repeat("g", 64)} {
		require.Error(t, s.AddKey(t.Context(), "weak", weak), weak)
	}
}
