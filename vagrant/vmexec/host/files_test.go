package host

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func archive(t *testing.T, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: n, Mode: 0o640, Size: 4, Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte("data"))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestOnlyWhatWasAskedForIsSaved(t *testing.T) {
	for _, c := range []struct {
		name, path string
		saved      bool
	}{
		{"the file", "cover.out", true},
		{"in the folder", "artifacts/a/b", true},
		{"beside the folder", "artifacts-of-others/a", false},
		{"up from the folder", "artifacts/../other", false},
		{"elsewhere", "other", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			f := newFiles([]string{filepath.Join(dir, "cover.out"), filepath.Join(dir, "artifacts")})
			data := archive(t, filepath.Join(dir, "cover.out")[1:], dir[1:]+"/"+c.path)
			var err error
			for len(data) > 0 && err == nil { // in small pieces, as they come from the line
				n := min(len(data), 100)
				err = f.write(data[:n])
				data = data[n:]
			}
			if err == nil {
				err = f.finish()
			} else {
				f.abandon()
			}
			if !c.saved {
				require.ErrorContains(t, err, "nobody asked for")
				assert.NoFileExists(t, filepath.Join(dir, c.path))
				return
			}
			require.NoError(t, err)
			got, err := os.ReadFile(filepath.Join(dir, c.path))
			require.NoError(t, err)
			assert.Equal(t, "data", string(got))
		})
	}
}

func TestAnArchiveThatBreaksOff(t *testing.T) {
	dir := t.TempDir()
	f := newFiles([]string{dir})
	require.NoError(t, f.write(archive(t, dir[1:]+"/a")[:514]))
	assert.ErrorContains(t, f.finish(), "unexpected EOF")
}
