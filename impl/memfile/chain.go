package memfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sort"
)

// MaxLayers bounds a chain: twice MaxGenerations and more, since merging happens beside the machine's life
// and may come late.
const MaxLayers = 32

// Hole is the layer of a run that no layer has data for: zero.
const Hole = -1

// Run is a part of the memory that comes from one layer.
type Run struct {
	Offset, Length int64
	// Layer is the layer's place in the chain, 0 being the base, or Hole.
	Layer int
}

// End is the offset behind the run.
func (r Run) End() int64 { return r.Offset + r.Length }

// Chain is a base with diffs upon it, seen as one memory. Its methods may be called from many goroutines;
// Close only after all others have returned.
type Chain struct {
	layers []*layer
	size   int64
	// starts are the first pages of all runs, in order; of is each run's layer. Two slices, because the search
	// then touches half the memory.
	starts []uint32
	of     []int8
}

// Open opens the layers whose data files are at paths, the base first. Layers that do not lie upon each
// other are refused with a *CorruptError, as are torn and foreign headers and data files of another size.
// The data itself is compared with its checksums when it is first read, or by Verify.
func Open(paths ...string) (_ *Chain, err error) {
	if len(paths) == 0 || len(paths) > MaxLayers {
		return nil, fmt.Errorf("open memory: %d layers, want 1 to %d", len(paths), MaxLayers)
	}
	c := &Chain{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, path := range paths {
		l, err := openLayer(path)
		if err != nil {
			return nil, err
		}
		c.layers = append(c.layers, l)
		if err := c.fits(); err != nil {
			return nil, err
		}
	}
	c.size = c.layers[0].header.MemorySize
	c.index()
	return c, nil
}

// fits checks that the last layer lies upon the one before it.
func (c *Chain) fits() error {
	n := len(c.layers) - 1
	h := c.layers[n].header
	refuse := func(format string, args ...any) error {
		return &CorruptError{c.layers[n].data.Name() + HeaderSuffix, 0, fmt.Sprintf(format, args...)}
	}
	if n == 0 {
		if !h.IsBase() {
			return refuse("a diff upon %s where a base is wanted", h.Parent)
		}
		return nil
	}
	// Which of the two is the foreign one cannot be told: both are named.
	below, at := c.layers[n-1].header, c.layers[n-1].data.Name()+HeaderSuffix
	switch {
	case h.Parent != below.ID:
		return refuse("it lies upon layer %s, not upon %s (%s)", h.Parent, below.ID, at)
	case h.Generation != below.Generation+1:
		return refuse("generation %d upon generation %d (%s)", h.Generation, below.Generation, at)
	case h.MemorySize != below.MemorySize:
		return refuse("memory of %d bytes upon %d (%s)", h.MemorySize, below.MemorySize, at)
	}
	return nil
}

// index lays the layers over each other, one after the other: linear in the runs of what lies below.
func (c *Chain) index() {
	runs := []Run{{0, c.size, Hole}}
	for i, l := range c.layers {
		runs = overlay(runs, l.header.Extents, i)
	}
	c.starts, c.of = make([]uint32, len(runs)), make([]int8, len(runs))
	for i, r := range runs {
		c.starts[i], c.of[i] = uint32(r.Offset/PageSize), int8(r.Layer)
	}
}

// overlay puts extents of a layer upon runs, which cover the memory without gaps, as does the result.
func overlay(runs []Run, extents []Extent, layer int) []Run {
	out := make([]Run, 0, len(runs)+2*len(extents))
	add := func(r Run) {
		if r.Length <= 0 {
			return
		}
		if n := len(out) - 1; n >= 0 && out[n].Layer == r.Layer {
			out[n].Length += r.Length
			return
		}
		out = append(out, r)
	}
	for _, r := range runs {
		at := r.Offset
		for len(extents) > 0 && extents[0].Offset < r.End() {
			e := extents[0]
			if e.Offset > at {
				add(Run{at, e.Offset - at, r.Layer})
			}
			start, end := max(e.Offset, r.Offset), min(e.End(), r.End())
			add(Run{start, end - start, layer})
			at = end
			if e.End() > r.End() {
				break // goes on in the next run
			}
			extents = extents[1:]
		}
		add(Run{at, r.End() - at, r.Layer})
	}
	return out
}

// Size is the guest's memory in bytes.
func (c *Chain) Size() int64 { return c.size }

// Top is the header of the last layer, which names what the chain's content is.
func (c *Chain) Top() *Header { return c.layers[len(c.layers)-1].header }

// Headers are those of all layers, the base first.
func (c *Chain) Headers() []*Header {
	all := make([]*Header, len(c.layers))
	for i, l := range c.layers {
		all[i] = l.header
	}
	return all
}

// NeedsMerge tells whether there are as many diffs as there should be at most.
func (c *Chain) NeedsMerge() bool { return len(c.layers)-1 >= MaxGenerations }

// Lookup finds where the memory from offset on comes from, and for how long, in O(log n) of the chain's
// runs. Beyond the memory, and before it, the run is empty.
func (c *Chain) Lookup(offset int64) Run {
	if offset < 0 || offset >= c.size {
		return Run{offset, 0, Hole}
	}
	return c.from(c.find(offset), offset)
}

func (c *Chain) find(offset int64) int {
	page := uint32(offset / PageSize)
	return sort.Search(len(c.starts), func(i int) bool { return c.starts[i] > page }) - 1
}

// from is the part of run i from offset on.
func (c *Chain) from(i int, offset int64) Run {
	end := c.size
	if i+1 < len(c.starts) {
		end = int64(c.starts[i+1]) * PageSize
	}
	return Run{offset, end - offset, int(c.of[i])}
}

// Runs iterates over the memory from offset up to end, which are cut to the memory, without gaps.
func (c *Chain) Runs(offset, end int64) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		offset, end := max(offset, 0), min(end, c.size)
		if offset >= end {
			return
		}
		for i := c.find(offset); offset < end; i++ {
			r := c.from(i, offset)
			r.Length = min(r.Length, end-offset)
			if !yield(r) {
				return
			}
			offset = r.End()
		}
	}
}

// ReadAt reads the memory as the last layer left it. The first read of a piece reads it whole and compares
// its checksum; one that differs, or a file that has become shorter, is a *CorruptError.
func (c *Chain) ReadAt(b []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read memory at %d: negative offset", offset)
	}
	done := 0
	for r := range c.Runs(offset, offset+int64(len(b))) {
		part := b[done : done+int(r.Length)]
		if r.Layer == Hole {
			clear(part)
		} else if err := c.layers[r.Layer].read(part, r.Offset); err != nil {
			return done, err
		}
		done += len(part)
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}

// Verify reads all data of all layers, also what others lie upon, and compares checksums. What differs is a
// *CorruptError. Later reads need not compare again.
func (c *Chain) Verify(ctx context.Context) error {
	for _, l := range c.layers {
		if err := l.verify(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close closes the layers' files. A second call does nothing.
func (c *Chain) Close() error {
	var errs []error
	for _, l := range slices.Backward(c.layers) {
		errs = append(errs, l.data.Close())
	}
	c.layers = nil
	return errors.Join(errs...)
}
