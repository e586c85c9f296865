package uffd

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/memfile"
)

func TestS10_RegionsMustBeTheWholeMemoryOnce(t *testing.T) {
	page := uint64(memfile.PageSize)
	at := func(address, size, offset uint64) wireRegion {
		return wireRegion{Address: address * page, Size: size * page, Offset: offset * page, Page: &page}
	}
	const size = 10 * memfile.PageSize
	good := []wireRegion{at(100, 4, 6), at(1, 6, 0)}
	regions, err := place(good, size)
	require.NoError(t, err)
	p := newPages(regions, size)
	for address, want := range map[uint64]int64{1: 0, 6: 5, 100: 6, 103: 9} {
		got, ok := p.at(address*page + 17)
		assert.True(t, ok)
		assert.Equal(t, want, got)
		back, _, _ := p.address(want)
		assert.Equal(t, address*page, back)
	}
	for _, outside := range []uint64{0, 7, 99, 104, 1 << 50} {
		_, ok := p.at(outside * page)
		assert.False(t, ok, outside)
	}
	for name, bad := range map[string][]wireRegion{
		"none":                  {},
		"too short":             {at(1, 9, 0)},
		"too long":              {at(1, 11, 0)},
		"behind the end":        {at(1, 6, 0), at(100, 4, 7)},
		"a gap":                 {at(1, 5, 0), at(100, 4, 6)},
		"the same bytes twice":  {at(1, 6, 0), at(100, 5, 5)},
		"overlapping addresses": {at(1, 6, 0), at(6, 4, 6)},
		"an empty one":          {at(1, 10, 0), at(100, 0, 10)},
		"a wrapped address":     {at(1<<52-5, 10, 0)},
		"a huge offset":         {at(1, 10, 1<<52-1)},
		"half a page":           {{Address: page + 1, Size: size, Page: &page}},
		"no page size":          {{Address: page, Size: size}},
		"too many":              make([]wireRegion, maxRegions+1),
	} {
		_, err := place(bad, size)
		assert.Error(t, err, name)
	}
}

func TestS10_ARemovalMayCoverSeveralRegionsAndMore(t *testing.T) {
	p := newPages([]region{{0x10000, 4 * memfile.PageSize, 0}, {0x20000, 4 * memfile.PageSize, 4 * memfile.PageSize}}, 8*memfile.PageSize)
	for i := range int64(8) {
		p.filled.set(i)
	}
	p.remove(0x10000+3*memfile.PageSize, 0x20000+memfile.PageSize)
	var removed []int64
	for i := range int64(8) {
		if p.removed.has(i) {
			removed = append(removed, i)
			assert.False(t, p.filled.has(i))
		}
	}
	assert.Equal(t, []int64{3, 4}, removed)
}
