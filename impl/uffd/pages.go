package uffd

import (
	"sort"
	"sync/atomic"

	"wrenn/impl/memfile"
)

// pages knows of each page of the memory whether it has been filled and whether the VMM has given it away.
// Pages are numbered as in the memory file.
type pages struct {
	regions []region // by address
	byFile  []region // by offset
	count   int64
	filled  bitmap
	// removed pages are zero from then on, whatever the memory file says.
	removed bitmap
}

func newPages(regions []region, size int64) *pages {
	p := &pages{regions: regions, byFile: append([]region(nil), regions...), count: size / memfile.PageSize}
	sort.Slice(p.byFile, func(i, j int) bool { return p.byFile[i].offset < p.byFile[j].offset })
	p.filled, p.removed = newBitmap(p.count), newBitmap(p.count)
	return p
}

// at returns the page at an address of the VMM.
func (p *pages) at(address uint64) (int64, bool) {
	i := sort.Search(len(p.regions), func(i int) bool { return p.regions[i].address > address }) - 1
	if i < 0 || address-p.regions[i].address >= uint64(p.regions[i].size) {
		return 0, false
	}
	r := p.regions[i]
	return (r.offset + int64(address-r.address)) / memfile.PageSize, true
}

// address is where the page is in the VMM, and end the first page that does not follow on it there.
func (p *pages) address(page int64) (address uint64, start, end int64) {
	offset := page * memfile.PageSize
	i := sort.Search(len(p.byFile), func(i int) bool { return p.byFile[i].offset > offset }) - 1
	r := p.byFile[i]
	return r.address + uint64(offset-r.offset), r.offset / memfile.PageSize, (r.offset + r.size) / memfile.PageSize
}

// remove notes that the VMM gave away what lies from start to end of its addresses.
func (p *pages) remove(start, end uint64) {
	for _, r := range p.regions {
		from, to := max(start, r.address), min(end, r.address+uint64(r.size))
		for a := from; a < to; a += memfile.PageSize {
			page := (r.offset + int64(a-r.address)) / memfile.PageSize
			p.removed.set(page)
			p.filled.clear(page)
		}
	}
}

type bitmap []atomic.Uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i int64) bool { return b[i/64].Load()&(1<<(i%64)) != 0 }
func (b bitmap) set(i int64)      { b[i/64].Or(1 << (i % 64)) }
func (b bitmap) clear(i int64)    { b[i/64].And(^(uint64(1) << (i % 64))) }

// window is a stretch of pages that are filled at once.
type window struct {
	from, to int64
	zero     bool
}

// window returns the pages around page that are filled along with it: within the block of batch pages that
// it lies in and its region, where the pages come from the memory file as it does, or are zero as it is, and
// are not there yet.
func (s *server) window(page int64) window {
	_, from, to := s.pages.address(page)
	from = max(from, page-page%s.batch)
	to = min(to, page-page%s.batch+s.batch)
	w := window{from: page, to: page + 1, zero: s.isZero(page)}
	for w.from > from && s.fits(w.from-1, w.zero) {
		w.from--
	}
	for w.to < to && s.fits(w.to, w.zero) {
		w.to++
	}
	return w
}

func (s *server) fits(page int64, zero bool) bool {
	return !s.pages.filled.has(page) && s.isZero(page) == zero
}

// isZero tells whether the page was given away or is in a hole of the base.
func (s *server) isZero(page int64) bool {
	return s.pages.removed.has(page) || s.chain.Lookup(page*memfile.PageSize).Layer == memfile.Hole
}
