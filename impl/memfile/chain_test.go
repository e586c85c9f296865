package memfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// inMemory is a chain without files: its index alone.
func inMemory(size int64, layers ...[]Extent) *Chain {
	c := &Chain{size: size}
	for _, extents := range layers {
		c.layers = append(c.layers, &layer{header: &Header{MemorySize: size, Extents: extents}})
	}
	c.index()
	return c
}

// extentsFrom makes a valid list out of any bytes.
func extentsFrom(b []byte, pages int64) []Extent {
	var out []Extent
	at := int64(0)
	for len(b) >= 2 {
		at += int64(b[0]) + 1
		n := int64(b[1]%40) + 1
		if at-1+n > pages {
			break
		}
		offset := (at - 1) * PageSize
		if k := len(out); k == 0 || out[k-1].End() < offset {
			out = append(out, Extent{offset, n * PageSize})
		}
		at += n
		b = b[2:]
	}
	return out
}

func FuzzChainLookup(f *testing.F) {
	f.Add([]byte{0, 1, 3, 5, 0, 9}, []byte{0, 0, 0, 0}, []byte{9, 30})
	f.Add([]byte{}, []byte{200, 39}, []byte{})
	f.Fuzz(func(t *testing.T, a, b, d []byte) {
		const pages = 700
		layers := [][]Extent{extentsFrom(a, pages), extentsFrom(b, pages), extentsFrom(d, pages)}
		c := inMemory(pages*PageSize, layers...)
		// What a look at every page and layer says.
		want := make([]int, pages)
		for p := range want {
			want[p] = Hole
			for i, extents := range layers {
				for _, e := range extents {
					if at := int64(p) * PageSize; at >= e.Offset && at < e.End() {
						want[p] = i
					}
				}
			}
		}
		for p, layer := range want {
			r := c.Lookup(int64(p)*PageSize + int64(p))
			if r.Layer != layer || r.Offset != int64(p)*PageSize+int64(p) || r.Length <= 0 {
				t.Fatalf("page %d is of layer %d, found %+v", p, layer, r)
			}
			if end := r.End() / PageSize; end < pages && want[end] == layer || r.End()%PageSize != 0 {
				t.Fatalf("the run %+v ends too early", r)
			}
		}
		at := int64(0)
		for r := range c.Runs(0, c.Size()) {
			if r.Offset != at || r.Length <= 0 {
				t.Fatalf("run %+v where %d is the next", r, at)
			}
			at = r.End()
		}
		if at != c.Size() {
			t.Fatalf("the runs end at %d of %d", at, c.Size())
		}
	})
}

func FuzzHeader(f *testing.F) {
	h := &Header{MemorySize: 1 << 30, ID: ID{1}, Parent: ID{2}, Generation: 3, Extents: []Extent{{0, PieceSize * 2}, {1 << 20, PageSize}}, Checksums: []uint32{1, 2, 3}}
	good, err := h.Encode()
	require.NoError(f, err)
	f.Add(good)
	f.Add(good[:len(good)-4])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum is made right half of the time, or fuzzing would never get behind it.
		if len(b) > sumSize && b[len(b)-1]%2 == 0 {
			body := b[:len(b)-sumSize]
			b = binary.LittleEndian.AppendUint32(bytes.Clone(body), checksum(body))
		}
		h, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := h.Encode()
		if err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		// The reserved word is the only thing that a header may have otherwise.
		clear(b[20:24])
		if !bytes.Equal(again[:len(again)-sumSize], b[:len(b)-sumSize]) {
			t.Fatal("another header came out")
		}
	})
}

func TestReadsOutsideTheMemory(t *testing.T) {
	m := chainOf(t, 2)
	c, err := Open(m.layers...)
	require.NoError(t, err)
	n, err := c.ReadAt(make([]byte, 10), c.Size()-4)
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, 4, n)
	_, err = c.ReadAt(make([]byte, 1), c.Size())
	require.ErrorIs(t, err, io.EOF)
	_, err = c.ReadAt(make([]byte, 1), -1)
	require.Error(t, err)
	assert.Zero(t, c.Lookup(c.Size()).Length)
	assert.Zero(t, c.Lookup(-1).Length)
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
}

func TestS06_AMergeLeavesWhatIsThere(t *testing.T) {
	m := chainOf(t, 2)
	c, err := Open(m.layers...)
	require.NoError(t, err)
	defer c.Close()
	assert.False(t, c.NeedsMerge())
	_, err = c.Merge(t.Context(), m.layers[0])
	require.ErrorIs(t, err, os.ErrExist)
	require.NoError(t, m.check(t.Context()))
	_, err = c.Merge(t.Context(), filepath.Join(m.dir, "no", "such"))
	require.ErrorIs(t, err, os.ErrNotExist)
	// A merge that was killed is begun anew over its remains.
	dst := filepath.Join(m.dir, "merged")
	require.NoError(t, os.WriteFile(dst+".new", bytes.Repeat([]byte{7}, 3*stretch), 0o600))
	_, err = c.Merge(t.Context(), dst)
	require.NoError(t, err)
	require.NoError(t, m.replace(dst, 2))
	require.NoError(t, m.check(t.Context()))
	for range MaxGenerations {
		m.run()
		require.NoError(t, m.pause(t.Context()))
	}
	full, err := Open(m.layers...)
	require.NoError(t, err)
	defer full.Close()
	assert.True(t, full.NeedsMerge())
}

func TestAFlatFileIsOnlyTakenForWhatItIs(t *testing.T) {
	m := chainOf(t, 2)
	flat := filepath.Join(m.dir, "memory.flat")
	flatten := func() Flattened {
		t.Helper()
		done, err := m.flatten(t.Context(), flat)
		require.NoError(t, err)
		return done
	}
	made := flatten()
	assert.False(t, made.Updated)
	if os.Getenv(wantReflinks) != "" {
		assert.True(t, made.Reflinked)
	}
	again := flatten()
	assert.True(t, again.Updated)
	assert.Zero(t, again.Copied)

	m.touch(8, 100)[0] ^= 1 // a long run, which can be shared, and a short one
	m.touch(300, 1)[0] ^= 1
	require.NoError(t, m.pause(t.Context()))
	top, err := ReadHeader(m.layers[2])
	require.NoError(t, err)
	done := flatten()
	assert.True(t, done.Updated)
	assert.Equal(t, top.DataSize(), done.Copied+done.Shared, "what changed, and nothing else, is written")
	assert.Equal(t, os.Getenv(wantReflinks) != "", done.Shared > 0)

	// An update that stops half-way leaves a file that is taken for nothing.
	m.touch(300, 1)[0] ^= 1
	require.NoError(t, m.pause(t.Context()))
	flip(t, m.layers[3], 300*PageSize)
	_, err = m.flatten(t.Context(), flat)
	refused(t, err, m.layers[3])
	flip(t, m.layers[3], 300*PageSize)
	m.layers = m.layers[:3]
	c, err := Open(m.layers...)
	require.NoError(t, err)
	done, err = c.Flatten(t.Context(), flat)
	require.NoError(t, err)
	assert.False(t, done.Updated, "a half-way update counts as the older content")
	require.NoError(t, c.Close())
	m.layers = append(m.layers, filepath.Join(m.dir, "memory.3"))

	note, err := os.ReadFile(flat + FlatSuffix)
	require.NoError(t, err)
	for name, spoil := range map[string]func() error{
		"no note":       func() error { return os.Remove(flat + FlatSuffix) },
		"no file":       func() error { return os.Remove(flat) },
		"a torn note":   func() error { return os.WriteFile(flat+FlatSuffix, note[:20], 0o600) },
		"a shorter one": func() error { return os.Truncate(flat, 100) },
		"another boot":  func() error { return os.WriteFile(flat+FlatSuffix, append(note[:33:33], "boot"...), 0o600) },
		"another layer": func() error {
			return os.WriteFile(flat+FlatSuffix, append([]byte(NewID().String()), note[32:]...), 0o600)
		},
		"one that others have": func() error { return os.Link(flat, flat+".link") },
	} {
		flatten()
		require.NoError(t, spoil(), name)
		assert.False(t, flatten().Updated, name)
		assert.True(t, flatten().Updated, name)
	}
}

func TestIDsAreWrittenAndRead(t *testing.T) {
	id := NewID()
	got, err := ParseID(id.String())
	require.NoError(t, err)
	assert.Equal(t, id, got)
	for _, bad := range []string{"", "00", id.String() + "00", "zz" + id.String()[2:]} {
		_, err := ParseID(bad)
		require.Error(t, err)
	}
}
