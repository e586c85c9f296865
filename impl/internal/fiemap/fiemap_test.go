package fiemap

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// layout is what each block of a file is: a number of a block on the disk with flags, or a hole.
type layout []struct {
	physical int64
	flags    uint32
}

// extents are as a file system lists them: blocks that follow each other in one.
func (l layout) extents() []extent {
	var all []extent
	for i, b := range l {
		if b.physical == 0 {
			continue
		}
		e := extent{logical: int64(i), physical: b.physical, length: 1, flags: b.flags}
		if n := len(all); n > 0 && all[n-1].end() == e.logical && all[n-1].physical+all[n-1].length == e.physical && all[n-1].flags == e.flags && rand.IntN(8) > 0 {
			all[n-1].length++
		} else {
			all = append(all, e)
		}
	}
	if n := len(all); n > 0 {
		all[n-1].flags |= flagLast
		if all[n-1].end() == int64(len(l)) {
			all[n-1].length += rand.Int64N(3) // beyond the end of the file, as its last block may be
		}
	}
	return all
}

// TestUnsharedIsWhatDiffersBlockByBlock compares it with a look at each block, for random files.
func TestUnsharedIsWhatDiffersBlockByBlock(t *testing.T) {
	const size = 60
	kinds := []uint32{flagShared, flagShared, flagShared, 0, flagShared | 0x800, flagShared | 0x8}
	for range 5000 {
		a := make(layout, size)
		next := int64(1000)
		for i := range a {
			if i == 0 || rand.IntN(6) == 0 {
				next = rand.Int64N(2) * (1000 + rand.Int64N(1000))
			}
			if a[i].physical, a[i].flags = next, kinds[rand.IntN(len(kinds))]; i > 0 && rand.IntN(4) > 0 {
				a[i].flags = a[i-1].flags
			}
			if next > 0 {
				next++
			}
		}
		b := append(layout(nil), a...)
		for range rand.IntN(6) {
			at := rand.IntN(size)
			for i := at; i < min(size, at+rand.IntN(8)); i++ {
				b[i].physical = rand.Int64N(2) * (3000 + int64(i) - int64(at)) // elsewhere, shared or not, or a hole
			}
		}
		parts := unshared(a.extents(), b.extents(), size)
		differ := make([]bool, size)
		last := int64(-1)
		for _, p := range parts {
			require.Greater(t, p.Offset, last)
			require.Positive(t, p.Length)
			for i := p.Offset; i < p.End(); i++ {
				differ[i] = true
			}
			last = p.End()
		}
		for i := range differ {
			same := a[i].physical == b[i].physical && (a[i].physical == 0 || a[i].flags == flagShared && b[i].flags == flagShared)
			require.Equal(t, !same, differ[i], "block %d of %v and %v", i, a, b)
		}
	}
}

// TestFilesOfDifferentFileSystemsShareNothing, whatever numbers their blocks have; nor do files that hold the same.
func TestFilesOfDifferentFileSystemsShareNothing(t *testing.T) {
	write := func(dir string) *os.File {
		path := filepath.Join(dir, "f")
		require.NoError(t, os.WriteFile(path, make([]byte, 8192), 0o600))
		f, err := os.Open(path)
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	here, memory := write(t.TempDir()), write(inMemory(t))
	for _, other := range []*os.File{memory, write(t.TempDir())} {
		parts, err := Unshared(here, other, 8192)
		if err != nil {
			require.ErrorIs(t, err, ErrUnknown)
			continue
		}
		assert.Equal(t, []Part{{0, 8192}}, parts)
	}
}

func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "wrenn-fiemap-") //nolint:usetesting // it must be on another file system
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}
