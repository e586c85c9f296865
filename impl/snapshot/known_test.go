package snapshot

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/internal/known"
)

// TestS08_AKnownDiskIsReadAgainOnceItWasWrittenTo damages one behind the back of its inode's time of writing, to see
// that it is not read, and then as whoever damages a file does.
func TestS08_AKnownDiskIsReadAgainOnceItWasWrittenTo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, diskName)
	old := time.Now().Add(-time.Minute)
	write := func(content string) { require.NoError(t, os.WriteFile(path, []byte(content), 0o600)) }
	write("disk")
	require.NoError(t, os.Chtimes(path, old, old))
	var seen known.Files
	disk, err := DescribeDisk(t.Context(), dir, &seen)
	require.NoError(t, err)
	m, err := Seal(t.Context(), dir, Manifest{ID: NewID()}, disk...)
	require.NoError(t, err)
	verify := func(k *known.Files) error { return Verify(t.Context(), dir, m, k) }

	write("dusk")
	require.ErrorIs(t, verify(&seen), ErrDamaged)
	require.NoError(t, os.Chtimes(path, old, old))
	require.NoError(t, verify(&seen), "it was read")
	require.ErrorIs(t, verify(nil), ErrDamaged)
	require.ErrorIs(t, verify(&known.Files{}), ErrDamaged, "by another life of the program")

	// What is found right is known from then on, whatever it is called. Another file of that name is not.
	write("disk")
	require.NoError(t, os.Chtimes(path, old, old))
	var later known.Files
	require.NoError(t, verify(&later))
	require.NoError(t, os.Link(path, filepath.Join(t.TempDir(), "link")))
	before, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, verify(&later))
	require.NoError(t, os.Rename(path, path+".mine"))
	write("dusk")
	require.NoError(t, os.Chtimes(path, before.ModTime(), before.ModTime()))
	require.NoError(t, os.Rename(path+".mine", filepath.Join(t.TempDir(), "mine")))
	require.ErrorIs(t, verify(&later), ErrDamaged)
}
