package snapshot

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sealed makes a snapshot with a sparse disk, a state and two layers.
func sealed(t testing.TB, dir, id string) Manifest {
	t.Helper()
	require.NoError(t, Create(dir))
	write := func(name string, at int64, content string, size int64) {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		_, err = f.WriteAt([]byte(content), at)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(size))
		require.NoError(t, f.Close())
	}
	write("root.disk", 3<<20, "data "+id, 64<<20)
	write(StateName, 0, "state "+id, 100)
	for i := range 2 {
		write(LayerName(i), 0, "layer", 1<<20)
		write(HeaderName(i), 0, "header "+id, 50)
	}
	m, err := Seal(t.Context(), dir, Manifest{
		ID: id, Generation: 3, Sandbox: "box", Template: "base", VCPUs: 2, MemoryMiB: 1, DiskMiB: 64, Layers: 2, CreatedAt: time.Now().UTC().Round(0),
	})
	require.NoError(t, err)
	return m
}

func TestS08_ASealedSnapshotIsLoaded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshot")
	m := sealed(t, dir, "one")
	got, err := Load(t.Context(), dir)
	require.NoError(t, err)
	assert.Equal(t, m, got)
	n, err := Layers(dir)
	require.NoError(t, err)
	assert.Equal(t, 2, n)
	require.NoError(t, os.WriteFile(filepath.Join(dir, FlatName), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, FlatName+".of"), nil, 0o600))
	_, err = Load(t.Context(), dir)
	require.NoError(t, err, "a cache beside it is no foreign file")
	size, err := Size(dir, filepath.Join(dir, "nosuch"))
	require.NoError(t, err)
	assert.Positive(t, size)
	assert.Less(t, size, int64(4<<20), "S04: holes count")
	require.NoError(t, os.Link(filepath.Join(dir, "root.disk"), filepath.Join(dir, FlatName+".link")))
	again, err := Size(dir, dir)
	require.NoError(t, err)
	assert.Equal(t, size, again, "S04: a file with two names counts twice")
}

// TestS08_EveryChangeIsRefusedByName: of each file, each kind of damage.
func TestS08_EveryChangeIsRefusedByName(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other")
	sealed(t, other, "two")
	for _, name := range []string{"root.disk", StateName, HeaderName(0), HeaderName(1), LayerName(0), ManifestName} {
		for kind, damage := range map[string]func(t *testing.T, path string){
			"missing":   func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
			"empty":     func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
			"truncated": func(t *testing.T, path string) { truncate(t, path, -2) },
			"longer":    func(t *testing.T, path string) { truncate(t, path, 1) },
			"a bit":     func(t *testing.T, path string) { flip(t, path) },
			"foreign": func(t *testing.T, path string) {
				require.NoError(t, os.Remove(path))
				require.NoError(t, os.Link(filepath.Join(other, filepath.Base(path)), path))
			},
			"a link": func(t *testing.T, path string) {
				require.NoError(t, os.Rename(path, path+".moved"))
				require.NoError(t, os.Rename(path+".moved", filepath.Join(filepath.Dir(path), FlatName+".hidden")))
				require.NoError(t, os.Symlink(FlatName+".hidden", path))
			},
		} {
			switch {
			case isLayerData(name) && (kind == "a bit" || kind == "foreign"):
				continue // the layer's header has its checksums
			case name == ManifestName && (kind == "foreign" || kind == "longer" || kind == "a link"):
				continue // a whole manifest of another snapshot is refused with the first file that it does not fit
			}
			t.Run(name+" "+kind, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "snapshot")
				sealed(t, dir, "one")
				path := filepath.Join(dir, name)
				damage(t, path)
				_, err := Load(t.Context(), dir)
				if name == ManifestName && kind == "missing" {
					require.ErrorIs(t, err, fs.ErrNotExist)
					return
				}
				require.ErrorIs(t, err, ErrDamaged)
				assert.ErrorContains(t, err, path)
			})
		}
	}
}

func truncate(t *testing.T, path string, by int64) {
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, info.Size()+by))
}

// flip changes one bit in the middle of what is not zero.
func flip(t *testing.T, path string) {
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	at := strings.IndexFunc(string(content), func(r rune) bool { return r != 0 }) + 3
	content[at] ^= 1
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(content[at:at+1], int64(at))
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestS08_AForeignFileBesideItIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshot")
	sealed(t, dir, "one")
	path := filepath.Join(dir, HeaderName(2))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err := Load(t.Context(), dir)
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, path)
}

func TestS08_OtherVersionsAndMagicsAreRefused(t *testing.T) {
	for _, c := range [][2]string{
		{`"version":2`, `"version":1`}, {`wrenn-snapshot`, `other-snapshot`}, {`"vcpus":2`, `"vcpus":3`}, {`"root.disk"`, `"../r.disk"`},
	} {
		dir := filepath.Join(t.TempDir(), "snapshot")
		sealed(t, dir, "one")
		path := filepath.Join(dir, ManifestName)
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		changed := strings.Replace(string(content), c[0], c[1], 1)
		require.NotEqual(t, string(content), changed)
		require.NoError(t, os.WriteFile(path, []byte(changed), 0o600))
		_, err = Read(dir)
		require.ErrorIs(t, err, ErrDamaged, "%v", c)
		require.ErrorContains(t, err, path)
	}
	_, err := decode([]byte(strings.Repeat("[", 1<<16)))
	require.Error(t, err)
}

func TestS08_NamesInAManifestLeadNowhere(t *testing.T) {
	for _, name := range []string{"", "..", ".", "a/b", "/etc/passwd", "a\x00b"} {
		data, err := Manifest{Files: []File{{Name: name}}}.encode()
		require.NoError(t, err)
		_, err = decode(data)
		require.Error(t, err, "%q", name)
	}
}

func TestS08_CommitReplacesAndTakesBack(t *testing.T) {
	root := t.TempDir()
	place, beside := filepath.Join(root, "snapshot"), filepath.Join(root, "snapshot.new")
	id := func() string {
		m, err := Load(t.Context(), place)
		require.NoError(t, err)
		return m.ID
	}
	sealed(t, beside, "one")
	require.NoError(t, Commit(beside, place))
	assert.Equal(t, "one", id())
	assert.NoDirExists(t, beside)
	sealed(t, beside, "two")
	require.NoError(t, Commit(beside, place))
	assert.Equal(t, "two", id())
	require.NoError(t, Commit(beside, place))
	assert.Equal(t, "one", id())
	require.NoError(t, Create(beside), "what an unfinished one left is removed")
	entries, err := os.ReadDir(beside)
	require.NoError(t, err)
	assert.Empty(t, entries)
	require.Error(t, Commit(filepath.Join(root, "nosuch"), place))
}

// TestS04_HolesAndZerosAreTheSame: a copy may turn one into the other.
func TestS04_HolesAndZerosAreTheSame(t *testing.T) {
	sum := func(write func(f *os.File)) uint32 {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, f.Truncate(3*piece+17))
		write(f)
		all, err := sumPieces(t.Context(), f, 3*piece+17, nil)
		require.NoError(t, err)
		return crc32.Checksum(all, castagnoli)
	}
	data := func(at int64) func(*os.File) {
		return func(f *os.File) { _, err := f.WriteAt([]byte("x"), at); require.NoError(t, err) }
	}
	sparse := sum(data(2 * piece))
	assert.Equal(t, sparse, sum(func(f *os.File) {
		_, err := f.WriteAt(make([]byte, 3*piece+17), 0)
		require.NoError(t, err)
		data(2 * piece)(f)
	}))
	assert.NotEqual(t, sparse, sum(data(piece)), "data at another place")
	assert.NotEqual(t, sparse, sum(data(2*piece+1)))
	assert.NotEqual(t, sparse, sum(data(3*piece+16)), "the last byte")
	assert.NotEqual(t, sparse, sum(func(*os.File) {}))
	two := func(first, second string) uint32 {
		return sum(func(f *os.File) {
			for i, content := range []string{first, second} {
				_, err := f.WriteAt([]byte(content), int64(i)*piece)
				require.NoError(t, err)
			}
		})
	}
	assert.NotEqual(t, two("x", "y"), two("y", "x"), "pieces in another order")
}

func TestS08_LinksShareFiles(t *testing.T) {
	root := t.TempDir()
	from, to := filepath.Join(root, "a"), filepath.Join(root, "b")
	m := sealed(t, from, "one")
	require.NoError(t, Create(to))
	keepSums(filepath.Join(from, "root.disk"), []byte("a cache"))
	require.NoError(t, Link(from, to, m.WithoutLayers()))
	assert.FileExists(t, filepath.Join(to, "root.disk"+sumsSuffix), "the next pause of a clone would read all of its disk")
	require.NoError(t, LinkLayers(from, to, 2))
	m.ID = "two"
	_, err := Seal(t.Context(), to, m)
	require.NoError(t, err)
	one, err := Size(from)
	require.NoError(t, err)
	both, err := Size(from, to)
	require.NoError(t, err)
	assert.Less(t, both, one+one/2, "the files are not shared")
	require.NoError(t, os.RemoveAll(from))
	_, err = Load(t.Context(), to)
	require.NoError(t, err)
}

func FuzzManifest(f *testing.F) {
	m := sealed(f, filepath.Join(f.TempDir(), "snapshot"), "one")
	data, err := m.encode()
	require.NoError(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if strings.Contains(file.Name, "/") {
				t.Fatalf("a name %q", file.Name)
			}
		}
	})
}

// TestS08_TheDiskMayBeDescribedFirst: what is described already is not looked at again, and the rest is not left out.
func TestS08_TheDiskMayBeDescribedFirst(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	write("root.disk", "disk")
	write(LayerName(0), "half of the mem")
	write("."+HeaderName(0)+".tmp-1", "he")
	write("."+StateName+".tmp-1", "st")
	disk, err := DescribeDisk(t.Context(), dir, nil)
	require.NoError(t, err)
	require.Len(t, disk, 1)
	require.NoError(t, errors.Join(os.Remove(filepath.Join(dir, "."+HeaderName(0)+".tmp-1")), os.Remove(filepath.Join(dir, "."+StateName+".tmp-1"))))
	write(LayerName(0), "half of the memory")
	write(StateName, "state")
	sealed, err := Seal(t.Context(), dir, Manifest{ID: NewID()}, disk...)
	require.NoError(t, err)
	loaded, err := Load(t.Context(), dir)
	require.NoError(t, err)
	assert.Equal(t, sealed.Files, loaded.Files)
	require.Len(t, sealed.Files, 3)
	assert.Contains(t, sealed.Files, disk[0])
	write("root.disk", "dusk")
	_, err = Load(t.Context(), dir)
	require.ErrorIs(t, err, ErrDamaged)
}

// TestS08_NoBitOfAManifestMayChange: a capital in the name of one of the envelope's fields, which its checksum does not
// cover, once went unnoticed.
func TestS08_NoBitOfAManifestMayChange(t *testing.T) {
	data, err := Manifest{ID: "a", Sandbox: "<b>", Template: "base", Files: []File{{Name: "disk", Size: 7}}}.encode()
	require.NoError(t, err)
	_, err = decode(data)
	require.NoError(t, err)
	for bit := range 8 * len(data) {
		changed := bytes.Clone(data)
		changed[bit/8] ^= 1 << (bit % 8)
		_, err := decode(changed)
		assert.Error(t, err, "%s", changed)
	}
	for _, more := range []string{" ", "\n", "{}"} {
		_, err := decode(append(bytes.Clone(data), more...))
		assert.Error(t, err, "%q behind it", more)
	}
}
