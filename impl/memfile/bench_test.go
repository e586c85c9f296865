package memfile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// benchMemory is the memory of the machine that benchmarks work on: 256 MiB.
const benchMemory = 256 << 20

// benchChain writes a base of which three quarters are data, and two diffs of a tenth in runs of 1 to 16 pages.
func benchChain(b *testing.B) []string {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	dir := b.TempDir()
	var parent *Header
	var paths []string
	for layer := range 3 {
		path := filepath.Join(dir, fmt.Sprint("memory.", layer))
		f, err := os.Create(path)
		require.NoError(b, err)
		defer f.Close()
		require.NoError(b, f.Truncate(benchMemory))
		buf := make([]byte, 16*PageSize)
		for at := int64(0); at < benchMemory; at += int64(len(buf)) {
			n := len(buf)
			if layer > 0 {
				n = (1 + r.IntN(16)) * PageSize
			}
			if layer == 0 && r.IntN(4) == 0 || layer > 0 && r.IntN(5) > 0 {
				continue
			}
			for i := 0; i < n; i += 8 {
				buf[i] = byte(r.Uint32())
			}
			_, err := f.WriteAt(buf[:n], at)
			require.NoError(b, err)
		}
		parent, err = Describe(b.Context(), f, parent)
		require.NoError(b, err)
		require.NoError(b, WriteHeader(path, parent))
		paths = append(paths, path)
	}
	return paths
}

func dataOf(b *testing.B, paths ...string) (total int64) {
	for _, p := range paths {
		h, err := ReadHeader(p)
		require.NoError(b, err)
		total += h.DataSize()
	}
	return total
}

func BenchmarkDescribe(b *testing.B) {
	base := benchChain(b)[0]
	b.SetBytes(dataOf(b, base))
	f, err := os.Open(base)
	require.NoError(b, err)
	defer f.Close()
	for b.Loop() {
		_, err := Describe(b.Context(), f, nil)
		require.NoError(b, err)
	}
}

func BenchmarkVerify(b *testing.B) {
	base := benchChain(b)[0]
	b.SetBytes(dataOf(b, base))
	for b.Loop() {
		require.NoError(b, Verify(b.Context(), base))
	}
}

// BenchmarkMerge stands beside BenchmarkCopySparse, which reads and writes the same data without sums,
// layers or a sync ("synced" has one).
func BenchmarkMerge(b *testing.B) {
	paths := benchChain(b)
	dst := filepath.Join(b.TempDir(), "merged")
	b.SetBytes(benchMemory)
	for b.Loop() {
		c, err := Open(paths...)
		require.NoError(b, err)
		_, err = c.Merge(b.Context(), dst)
		require.NoError(b, err)
		require.NoError(b, c.Close())
		b.StopTimer()
		require.NoError(b, removeAny(dst, dst+HeaderSuffix))
		b.StartTimer()
	}
}

func BenchmarkCopySparse(b *testing.B) {
	need.Program(b, "cp", "sync")
	paths := benchChain(b)
	c, err := Open(paths...)
	require.NoError(b, err)
	src := filepath.Join(b.TempDir(), "merged")
	_, err = c.Merge(b.Context(), src)
	require.NoError(b, err)
	require.NoError(b, c.Close())
	for _, synced := range []bool{false, true} {
		b.Run(fmt.Sprintf("synced=%t", synced), func(b *testing.B) {
			b.SetBytes(benchMemory)
			for b.Loop() {
				dst := src + ".copy"
				require.NoError(b, exec.Command("cp", "--sparse=always", "--reflink=never", src, dst).Run())
				if synced {
					require.NoError(b, exec.Command("sync", dst).Run())
				}
				b.StopTimer()
				require.NoError(b, os.Remove(dst))
				b.StartTimer()
			}
		})
	}
}

func BenchmarkFlatten(b *testing.B) {
	paths := benchChain(b)
	for _, update := range []bool{false, true} {
		b.Run(fmt.Sprintf("update=%t", update), func(b *testing.B) {
			dst := filepath.Join(b.TempDir(), "memory.flat")
			b.SetBytes(benchMemory)
			for b.Loop() {
				b.StopTimer()
				if update {
					older, err := Open(paths[:2]...)
					require.NoError(b, err)
					require.NoError(b, removeAny(dst+FlatSuffix))
					_, err = older.Flatten(b.Context(), dst)
					require.NoError(b, err)
					require.NoError(b, older.Close())
				} else {
					require.NoError(b, removeAny(dst+FlatSuffix))
				}
				b.StartTimer()
				c, err := Open(paths...)
				require.NoError(b, err)
				done, err := c.Flatten(b.Context(), dst)
				require.NoError(b, err)
				require.Equal(b, update, done.Updated)
				require.NoError(b, c.Close())
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	const extents = 1_000_000
	list := make([]Extent, extents)
	for i := range list {
		list[i] = Extent{int64(i) * 3 * PageSize, PageSize}
	}
	c := inMemory(extents*3*PageSize, list)
	r := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if c.Lookup(r.Int64N(c.Size())).Length == 0 {
			b.Fatal("nothing found")
		}
	}
}
