package qemu

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const someMaps = `555555554000-555555a00000 r--p 00000000 fe:00 1234                       /usr/bin/qemu-system-x86_64
7f0000000000-7f0000400000 rw-p 00000000 00:01 77                         /memfd:guest-memory (deleted)
7f0000400000-7f0000c00000 rw-p 00400000 00:01 77                         /memfd:guest-memory (deleted)
7f1000000000-7f1000021000 rw-p 00000000 00:00 0 
7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`

func TestMappings(t *testing.T) {
	all, err := parseMaps(strings.NewReader(someMaps))
	require.NoError(t, err)
	require.Len(t, all, 6)
	assert.Equal(t, mapping{0x7f0000400000, 0x7f0000c00000, 0x400000, "00:01 77"}, all[2])

	found, err := cover(all, "00:01 77", 12<<20)
	require.NoError(t, err)
	assert.Equal(t, all[1:3], found, "a mapping that something has split")
	found, err = cover(all, "00:01 77", 6<<20)
	require.NoError(t, err)
	assert.Equal(t, []mapping{all[1], {0x7f0000400000, 0x7f0000600000, 0x400000, "00:01 77"}}, found, "no more than asked for")
	_, err = cover(all, "00:01 77", 13<<20)
	require.ErrorContains(t, err, "not mapped from byte 12582912 on")
	_, err = cover(all[2:], "00:01 77", 12<<20)
	require.ErrorContains(t, err, "not mapped from byte 0 on")
	_, err = cover(all, "00:01 78", 4096)
	require.Error(t, err)

	for line, want := range map[string]string{
		"":                              "has 0 fields",
		"x-y rw-p 0 0:0 0":              "invalid syntax",
		"1000-y rw-p 0 0:0 0":           "invalid syntax",
		"1000-2000 rw-p y 0:0 0":        "invalid syntax",
		"2000-1000 rw-p 0 0:0 0":        "whole pages",
		"1000-1800 rw-p 0 0:0 0":        "whole pages",
		"1000-2000 rw-p 00000800 0:0 0": "whole pages",
	} {
		_, err := parseMapping(line)
		require.ErrorContains(t, err, want, line)
	}
}

func TestS07_ChangedPages(t *testing.T) {
	const present, swapped, filePage, softDirty, exclusive = 1 << 63, 1 << 62, 1 << 61, 1 << 55, 1 << 56
	for _, test := range []struct {
		entry uint64
		want  bool
	}{
		{0, false},
		{present, true},
		{present | softDirty | exclusive, true},
		{swapped, true}, // it was written, and then the host ran short of memory
		{swapped | 5<<5, true},
		{present | filePage, false}, // only read
		{present | filePage | exclusive | softDirty, false},
		{swapped | filePage, false},
		{softDirty, false},
	} {
		assert.Equal(t, test.want, changed(test.entry), "%#x", test.entry)
	}
}

func FuzzChangedRuns(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 24))
	f.Add(binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, 1<<63), 3<<61))
	f.Fuzz(func(t *testing.T, entries []byte) {
		runs := changedRuns(nil, entries)
		var got []int
		last := -1
		for _, r := range runs {
			require.Less(t, last, r.start, "apart and in order")
			require.Less(t, r.start, r.end)
			for at := r.start; at < r.end; at += pageSize {
				got = append(got, at/pageSize)
			}
			last = r.end
		}
		var want []int
		for page := range len(entries) / 8 {
			if changed(binary.NativeEndian.Uint64(entries[page*8:])) {
				want = append(want, page)
			}
		}
		require.Equal(t, want, got)
	})
}

func FuzzParseMaps(f *testing.F) {
	f.Add(someMaps)
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseMaps(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, m := range all {
			require.Less(t, m.start, m.end)
		}
		_, _ = cover(all, "00:01 77", 1<<20) // ends
	})
}

func TestZeroRuns(t *testing.T) {
	random := seeded(t)
	for range 200 {
		buf := make([]byte, random.IntN(20*pageSize))
		for page := 0; page < len(buf); page += pageSize {
			if random.IntN(2) == 0 {
				buf[page+random.IntN(min(pageSize, len(buf)-page))] = 1
			}
		}
		at := 0
		note := func(want byte) func(int, int) error {
			return func(start, end int) error {
				require.Equal(t, at, start)
				require.Less(t, start, end)
				for page := start; page < end; page += pageSize {
					holds := byte(0)
					for _, b := range buf[page:min(page+pageSize, end)] {
						holds |= b
					}
					require.Equal(t, want, holds)
				}
				at = end
				return nil
			}
		}
		require.NoError(t, zeroRuns(buf, note(1), note(0)))
		require.Equal(t, len(buf), at)
	}
}
