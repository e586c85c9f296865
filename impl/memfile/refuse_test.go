package memfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// chainOf makes a machine with n layers.
func chainOf(t *testing.T, n int) *machine {
	t.Helper()
	m := newMachine(seeded(t), t.TempDir(), 600, Describe)
	for range n {
		m.run()
		require.NoError(t, m.pause(t.Context()))
	}
	return m
}

// refused asserts that err names the file and is a CorruptError, which it returns.
func refused(t *testing.T, err error, file string) *CorruptError {
	t.Helper()
	require.ErrorIs(t, err, ErrCorrupt)
	var c *CorruptError
	require.ErrorAs(t, err, &c)
	assert.Equal(t, file, c.File)
	assert.Contains(t, err.Error(), file)
	return c
}

func flip(t *testing.T, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], offset)
	require.NoError(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b[:], offset)
	require.NoError(t, err)
}

func TestS08_AFlippedBitIsFoundWhereItIs(t *testing.T) {
	m := chainOf(t, 2)
	for _, path := range m.layers {
		h, err := ReadHeader(path)
		require.NoError(t, err)
		e := h.Extents[m.rand.IntN(len(h.Extents))]
		at := e.Offset + m.rand.Int64N(e.Length)
		flip(t, path, at)
		c := refused(t, Verify(t.Context(), path), path)
		assert.LessOrEqual(t, c.Offset, at)
		assert.Less(t, at-c.Offset, int64(PieceSize))

		// And by whoever reads the place for the first time, however little of it.
		one, err := openLayer(path)
		require.NoError(t, err)
		refused(t, one.read(make([]byte, 1), at), path)
		require.NoError(t, one.data.Close())
		flip(t, path, at)
		require.NoError(t, Verify(t.Context(), path))
	}
}

func TestS08_DamageIsNeitherMergedNorFlattened(t *testing.T) {
	m := chainOf(t, 1)
	m.touch(300, 1)[0] ^= 1 // too short to be shared instead of copied
	m.touch(8, 100)[0] ^= 1 // long enough
	require.NoError(t, m.pause(t.Context()))
	top := m.layers[1]
	flip(t, top, 8*PageSize)
	_, err := m.merge(t.Context(), 2)
	refused(t, err, top)
	refused(t, Verify(t.Context(), top), top)
	if os.Getenv(wantReflinks) == "" { // else it is not read, and Verify is what finds it
		_, err = m.flatten(t.Context(), filepath.Join(m.dir, "memory.flat"))
		refused(t, err, top)
	}
	flip(t, top, 8*PageSize)
	flip(t, top, 300*PageSize)
	_, err = m.merge(t.Context(), 2)
	refused(t, err, top)
	_, err = m.flatten(t.Context(), filepath.Join(m.dir, "memory.flat"))
	refused(t, err, top)
	left, err := filepath.Glob(filepath.Join(m.dir, "*"))
	require.NoError(t, err)
	assert.Len(t, left, 4, "a failed merge or flat file stayed: %v", left)
}

func TestS08_ATruncatedDataFileIsRefused(t *testing.T) {
	m := chainOf(t, 1)
	path := m.layers[0]
	c, err := Open(path)
	require.NoError(t, err)
	defer c.Close()
	h := c.Top()
	last := h.Extents[len(h.Extents)-1]
	require.NoError(t, os.Truncate(path, last.End()-1))
	// Already open: the reads tell, and the pieces' offsets.
	_, err = c.ReadAt(make([]byte, c.Size()), 0)
	refused(t, err, path)
	refused(t, c.Verify(t.Context()), path)
	_, err = Open(path)
	refused(t, err, path)
	refused(t, Verify(t.Context(), path), path)
	// Too long is foreign as well.
	require.NoError(t, os.Truncate(path, h.MemorySize+PageSize))
	refused(t, Verify(t.Context(), path), path)
	// Grown again, with zeros where data was.
	require.NoError(t, os.Truncate(path, 0))
	require.NoError(t, os.Truncate(path, h.MemorySize))
	refused(t, Verify(t.Context(), path), path)
}

func TestS08_DataInAHoleOfABaseIsRefusedAndZerosAreNot(t *testing.T) {
	m := newMachine(seeded(t), t.TempDir(), 64, Describe)
	copy(m.touch(3, 1), "x")
	require.NoError(t, m.pause(t.Context()))
	merged, err := m.merge(t.Context(), 1)
	require.NoError(t, err)
	f, err := os.OpenFile(merged, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	// What a copy does that fills holes.
	_, err = f.WriteAt(make([]byte, 10*PageSize), 20*PageSize)
	require.NoError(t, err)
	require.NoError(t, Verify(t.Context(), merged))
	_, err = f.WriteAt([]byte{1}, 25*PageSize+7)
	require.NoError(t, err)
	c := refused(t, Verify(t.Context(), merged), merged)
	assert.Equal(t, int64(25*PageSize), c.Offset)
}

func TestS08_EveryFlippedOrMissingByteOfAHeaderIsRefused(t *testing.T) {
	m := chainOf(t, 2)
	path := m.layers[1]
	name := path + HeaderSuffix
	good, err := os.ReadFile(name)
	require.NoError(t, err)
	try := func(b []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(name, b, 0o600))
		_, err := Open(m.layers...)
		refused(t, err, name)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		try(bad)
	}
	for _, n := range []int{0, 1, 8, fixedSize - 1, fixedSize, fixedSize + 4, len(good) / 2, len(good) - 1} {
		try(good[:n])
	}
	try(append(bytes.Clone(good), 0))
	try([]byte(strings.Repeat("no header ", 100)))
}

// TestS08_AHeaderThatSumsUpIsCheckedNevertheless forges the header's own checksum.
func TestS08_AHeaderThatSumsUpIsCheckedNevertheless(t *testing.T) {
	good := &Header{MemorySize: 8 * PageSize, ID: NewID(), Extents: []Extent{{0, PageSize}, {3 * PageSize, PageSize}}, Checksums: []uint32{1, 2}}
	encoded, err := good.Encode()
	require.NoError(t, err)
	le := binary.LittleEndian
	for name, change := range map[string]func(b []byte){
		"extents that touch":       func(b []byte) { le.PutUint32(b[fixedSize+extentSize:], 1) },
		"extents that overlap":     func(b []byte) { le.PutUint32(b[fixedSize+extentSize:], 0) },
		"an extent without length": func(b []byte) { le.PutUint32(b[fixedSize+4:], 0) },
		"an extent outside":        func(b []byte) { le.PutUint32(b[fixedSize+extentSize+4:], 6) },
		"a huge extent":            func(b []byte) { le.PutUint32(b[fixedSize+extentSize+4:], 1<<32-1) },
		"no memory":                func(b []byte) { le.PutUint64(b[24:], 0) },
		"huge memory":              func(b []byte) { le.PutUint64(b[24:], MaxMemory+PageSize) },
		"negative memory":          func(b []byte) { le.PutUint64(b[24:], 1<<63) },
		"memory of half a page":    func(b []byte) { le.PutUint64(b[24:], 8*PageSize+1) },
		"no id":                    func(b []byte) { clear(b[40:56]) },
		"its own parent":           func(b []byte) { copy(b[56:72], b[40:56]) },
		"a diff of generation 0":   func(b []byte) { b[56] = 1 },
		"counts that overflow":     func(b []byte) { le.PutUint64(b[72:], 1<<61+2) },
		"another version":          func(b []byte) { le.PutUint32(b[8:], 2) },
		"other pages":              func(b []byte) { le.PutUint32(b[12:], 16384) },
		"other pieces":             func(b []byte) { le.PutUint32(b[16:], 1<<20) },
	} {
		b := bytes.Clone(encoded)
		change(b)
		le.PutUint32(b[len(b)-4:], checksum(b[:len(b)-4]))
		_, err := Decode(b)
		assert.ErrorIs(t, err, ErrCorrupt, name)
	}
	_, err = Decode(encoded)
	require.NoError(t, err)
}

func TestS08_LayersThatDoNotLieUponEachOtherAreRefused(t *testing.T) {
	m, other := chainOf(t, 3), chainOf(t, 2)
	a := m.layers
	for name, layers := range map[string][]string{
		"a diff alone":            {a[1]},
		"a generation missing":    {a[0], a[2]},
		"in the wrong order":      {a[1], a[0]},
		"twice the same":          {a[0], a[1], a[1]},
		"a base upon a layer":     {a[0], other.layers[0]},
		"another machine's layer": {a[0], other.layers[1]},
	} {
		_, err := Open(layers...)
		at := len(layers) - 1
		if name == "in the wrong order" {
			at = 0
		}
		refused(t, err, layers[at]+HeaderSuffix)
	}
	_, err := Open()
	require.Error(t, err)
	_, err = Open(make([]string, MaxLayers+1)...)
	require.ErrorContains(t, err, "layers")

	// The same parent, but another count or another size.
	for _, change := range []func(*Header){
		func(h *Header) { h.Generation++ },
		func(h *Header) { h.MemorySize += PageSize; require.NoError(t, os.Truncate(a[1], h.MemorySize)) },
	} {
		h, err := ReadHeader(a[1])
		require.NoError(t, err)
		good := *h
		change(h)
		require.NoError(t, WriteHeader(a[1], h))
		_, err = Open(a[0], a[1])
		refused(t, err, a[1]+HeaderSuffix)
		require.NoError(t, WriteHeader(a[1], &good))
	}
	// A layer of another machine under the header of this one.
	require.NoError(t, os.Rename(other.layers[0], a[0]))
	refused(t, Verify(t.Context(), a[0]), a[0])
}

func TestS08_ADiffOfAnotherSizeIsNotDescribed(t *testing.T) {
	m := chainOf(t, 1)
	h, err := ReadHeader(m.layers[0])
	require.NoError(t, err)
	f, err := os.Create(filepath.Join(m.dir, "diff"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(h.MemorySize-PageSize))
	_, err = Describe(t.Context(), f, h)
	refused(t, err, f.Name())
	require.NoError(t, f.Truncate(100))
	_, err = Describe(t.Context(), f, nil)
	require.ErrorContains(t, err, "memory size 100")
	done, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, f.Truncate(PageSize))
	_, err = f.WriteAt([]byte{1}, 0)
	require.NoError(t, err)
	_, err = Describe(done, f, nil)
	require.ErrorIs(t, err, context.Canceled)
}

// TestCreateHeader writes what WriteHeader writes, and over nothing.
func TestCreateHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m")
	h := &Header{ID: NewID(), MemorySize: 4 * PageSize, Extents: []Extent{{PageSize, PageSize}}, Checksums: []uint32{7}}
	require.NoError(t, CreateHeader(path, h))
	got, err := ReadHeader(path)
	require.NoError(t, err)
	require.Equal(t, h, got)
	require.ErrorIs(t, CreateHeader(path, h), os.ErrExist)
}
