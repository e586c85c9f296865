package firecrackertest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return [32]byte(h.Sum(nil))
}

func checksum(t *testing.T, s snapshot) [2][32]byte {
	t.Helper()
	return [2][32]byte{sum(t, s.state), sum(t, s.memory)}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, os.RemoveAll(to))
	src, err := os.Open(from)
	require.NoError(t, err)
	defer src.Close()
	info, err := src.Stat()
	require.NoError(t, err)
	dst, err := os.Create(to)
	require.NoError(t, err)
	require.NoError(t, dst.Truncate(info.Size()))
	eachData(t, src, func(offset int64, data []byte) {
		_, err := dst.WriteAt(data, offset)
		require.NoError(t, err)
	})
	require.NoError(t, dst.Close())
}

// eachData calls for the data of a file, by at most 1 MiB, and leaves its holes out.
func eachData(t *testing.T, f *os.File, call func(offset int64, data []byte)) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		require.NoError(t, err)
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		require.NoError(t, err)
		for at = start; at < end; {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
			require.True(t, err == nil || errors.Is(err, io.EOF), "%v", err)
			call(at, buf[:n])
			at += int64(n)
		}
	}
}

// merge puts a diff on top of a memory file, and counts the pages that it zeroes.
func merge(t *testing.T, onto, diff string) (zeroed int) {
	t.Helper()
	src, err := os.Open(diff)
	require.NoError(t, err)
	defer src.Close()
	dst, err := os.OpenFile(onto, os.O_RDWR, 0)
	require.NoError(t, err)
	was := make([]byte, 4096)
	eachData(t, src, func(offset int64, data []byte) {
		for at := 0; at < len(data); at += 4096 {
			if !isZero(data[at : at+4096]) {
				continue
			}
			_, err := dst.ReadAt(was, offset+int64(at))
			require.NoError(t, err)
			if !isZero(was) {
				zeroed++
			}
		}
		_, err := dst.WriteAt(data, offset)
		require.NoError(t, err)
	})
	require.NoError(t, dst.Close())
	return zeroed
}

func requireSameFile(t *testing.T, want, got string) {
	t.Helper()
	if sum(t, want) == sum(t, got) {
		return
	}
	a, err := os.ReadFile(want)
	require.NoError(t, err)
	b, err := os.ReadFile(got)
	require.NoError(t, err)
	require.Len(t, b, len(a))
	var pages []int
	for at := 0; at < len(a); at += 4096 {
		if !bytes.Equal(a[at:at+4096], b[at:at+4096]) {
			pages = append(pages, at/4096)
		}
	}
	require.FailNow(t, "memory differs", "%s and %s in %d pages, the first are %v", want, got, len(pages), pages[:min(8, len(pages))])
}
