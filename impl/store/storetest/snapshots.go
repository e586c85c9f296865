package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/store"
)

// snapshot returns a row that was made n seconds after epoch.
func snapshot(id, name string, n int) store.Snapshot {
	sn := store.Snapshot{
		ID: id, Name: name, Tag: store.DefaultTag, Agent: "one", SandboxID: "a", Template: "base", CreatedAt: epoch.Add(time.Duration(n) * time.Second),
		VCPUs: 2, MemoryMiB: 512, DiskMiB: 1 << 40, SizeBytes: 1 << 50,
	}
	return sn
}

// put adds snapshots that replace none.
func put(t *testing.T, s *store.Store, list ...store.Snapshot) {
	t.Helper()
	for _, sn := range list {
		replaced, err := s.PutSnapshot(t.Context(), sn)
		require.NoError(t, err)
		require.Empty(t, replaced)
	}
}

func snapshotsComeBack(t *testing.T, s *store.Store) {
	named, unnamed, alike := snapshot("s1", "mine", 1), snapshot("s2", "", 2), snapshot("s3", "s2", 3)
	put(t, s, named, unnamed, snapshot("s4", "", 4), alike) // any number may have no name
	for _, tc := range []struct {
		name, tag string
		want      store.Snapshot
	}{{"mine", "default", named}, {"s1", "default", named}, {"s2", "default", alike}, {"s3", "default", alike}} {
		got, err := s.FindSnapshot(t.Context(), tc.name, tc.tag)
		require.NoError(t, err)
		assert.Equal(t, tc.want, got, tc.name)
	}
	for _, none := range [][2]string{{"mine", "v2"}, {"none", "default"}, {"' OR 1=1 --", "default"}} {
		_, err := s.FindSnapshot(t.Context(), none[0], none[1])
		require.ErrorIs(t, err, store.ErrNotFound)
	}
	require.NoError(t, s.DeleteSnapshot(t.Context(), "s3"))
	require.NoError(t, s.DeleteSnapshot(t.Context(), "s3"))
	got, err := s.FindSnapshot(t.Context(), "s2", "default")
	require.NoError(t, err)
	assert.Equal(t, unnamed, got)
}

func snapshotsTakeNames(t *testing.T, s *store.Store) {
	first, other, second := snapshot("s1", "mine", 1), snapshot("s2", "mine", 2), snapshot("s3", "mine", 3)
	other.Tag = "v2"
	put(t, s, first, other)
	replaced, err := s.PutSnapshot(t.Context(), second)
	require.NoError(t, err)
	assert.Equal(t, []store.Snapshot{first}, replaced)
	list, err := s.ListSnapshots(t.Context(), store.SnapshotQuery{})
	require.NoError(t, err)
	assert.Equal(t, []store.Snapshot{second, other}, list)
	put(t, s, second) // again
	put(t, s, snapshot("s4", "", 4), snapshot("s4", "late", 4), snapshot("s4", "", 4))
	got, err := s.FindSnapshot(t.Context(), "late", store.DefaultTag)
	require.NoError(t, err)
	assert.Equal(t, "s4", got.ID)
}

func snapshotPages(t *testing.T, s *store.Store) {
	var want []string
	for i := range 9 {
		sn := snapshot(fmt.Sprintf("s%d", i), "", i/4) // four share a time
		if i == 8 {
			sn.Agent, sn.SandboxID, sn.Name, sn.Tag = "two", "b", "n", "v2"
		}
		put(t, s, sn)
		want = append([]string{sn.ID}, want...)
	}
	names := func(q store.SnapshotQuery) (ids []string) {
		list, err := s.ListSnapshots(t.Context(), q)
		require.NoError(t, err)
		for _, sn := range list {
			ids = append(ids, sn.ID)
		}
		return ids
	}
	var got []string
	for q := (store.SnapshotQuery{Limit: 2}); ; {
		page := names(q)
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
		last, err := s.FindSnapshot(t.Context(), page[len(page)-1], "")
		require.NoError(t, err)
		q.After = &store.Position{StartedAt: last.CreatedAt, ID: last.ID}
	}
	assert.Equal(t, want, got)
	assert.Equal(t, want[:1], names(store.SnapshotQuery{Agent: "two"}))
	assert.Equal(t, want[:1], names(store.SnapshotQuery{SandboxID: "b"}))
	assert.Equal(t, want[:1], names(store.SnapshotQuery{Name: "n"}))
	assert.Equal(t, want[:1], names(store.SnapshotQuery{Tag: "v2"}))
	assert.Empty(t, names(store.SnapshotQuery{Name: "n", Tag: "default"}))
	assert.Len(t, names(store.SnapshotQuery{Agent: "one", SandboxID: "a", Tag: "default"}), 8)
}
