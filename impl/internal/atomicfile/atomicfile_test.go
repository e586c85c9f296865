package atomicfile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWriteReplacesAndLeavesNothingBeside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	require.NoError(t, Write(path, []byte("one"), 0o600))
	require.NoError(t, Write(path, []byte("two"), 0o600))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "two", string(got))
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1)
}

func TestPutReplacesAtOnceAndSyncFollows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	require.ErrorIs(t, Sync(path), os.ErrNotExist)
	require.NoError(t, Write(path, []byte("one"), 0o600))
	require.NoError(t, Put(path, []byte("two"), 0o600))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "two", string(got))
	require.NoError(t, Sync(path))
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, entries, 1)
}

func TestWriteThatFailsKeepsTheOldContent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	require.NoError(t, os.MkdirAll(filepath.Join(path, "child"), 0o700))
	require.ErrorContains(t, Write(path, []byte("x"), 0o600), path)
	assert.DirExists(t, filepath.Join(path, "child"))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "the temporary file stayed")
	require.Error(t, Write(filepath.Join(dir, "no", "dir"), nil, 0o600))
}

func TestF01_UnfinishedWritesAreRemovedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "note")
	left, err := os.CreateTemp(dir, unfinished(path)+"*") // where a kill leaves a Write
	require.NoError(t, err)
	require.NoError(t, left.Close())
	others := []string{".note", ".note.tmp", ".note2.tmp-1", "note", "note.tmp-1", "x.note.tmp-1"}
	for _, name := range others {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	require.NoError(t, RemoveUnfinished(path))
	kept, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range kept {
		names = append(names, e.Name())
	}
	assert.Equal(t, others, names)
	require.NoError(t, RemoveUnfinished(path), "there is nothing left")
}
