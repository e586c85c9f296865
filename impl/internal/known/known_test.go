package known

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAFileThatWasJustWrittenIsNotKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	var k Files
	for age, want := range map[time.Duration]bool{0: false, time.Minute: true} {
		at := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(path, at, at))
		what, err := Of(f)
		require.NoError(t, err)
		k.Note(f, what, 1)
		assert.Equal(t, want, k.Has(what, 1), "%v", age)
		assert.False(t, k.Has(what, 2))
	}
}

func TestAFileThatIsWrittenToWhileItIsReadIsNotKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	at := time.Now().Add(-time.Minute)
	require.NoError(t, os.Chtimes(path, at, at))
	before, err := Of(f)
	require.NoError(t, err)
	later := at.Add(time.Second)
	require.NoError(t, os.Chtimes(path, later, later)) // as a write does
	var k Files
	k.Note(f, before, 1)
	assert.Empty(t, k.sums)
}
