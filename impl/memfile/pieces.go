package memfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sort"

	"golang.org/x/sync/errgroup"
)

// pieces numbers the pieces of a list of extents.
type pieces struct {
	extents []Extent
	first   []int // per extent the number of its first piece, and at the end their count
}

func newPieces(extents []Extent) pieces {
	p := pieces{extents: extents, first: make([]int, len(extents)+1)}
	for i, e := range extents {
		p.first[i+1] = p.first[i] + int((e.End()-1)/PieceSize-e.Offset/PieceSize) + 1
	}
	return p
}

func (p pieces) count() int { return p.first[len(p.extents)] }

// of returns the number and the bounds of the piece that holds offset, in O(log n); false in a hole.
func (p pieces) of(offset int64) (int, Extent, bool) {
	e := sort.Search(len(p.extents), func(i int) bool { return p.extents[i].Offset > offset }) - 1
	if e < 0 || offset >= p.extents[e].End() {
		return 0, Extent{}, false
	}
	cell := offset / PieceSize
	return p.first[e] + int(cell-p.extents[e].Offset/PieceSize), p.cut(e, cell), true
}

// cut is the part of extent e within the cell of that number.
func (p pieces) cut(e int, cell int64) Extent {
	start := max(p.extents[e].Offset, cell*PieceSize)
	return Extent{start, min(p.extents[e].End(), (cell+1)*PieceSize) - start}
}

// each calls f for the pieces from number from up to, not including, to.
func (p pieces) each(from, to int, f func(n int, at Extent) error) error {
	e := sort.Search(len(p.extents), func(i int) bool { return p.first[i+1] > from })
	for n := from; n < to; n++ {
		for p.first[e+1] <= n {
			e++
		}
		if err := f(n, p.cut(e, p.extents[e].Offset/PieceSize+int64(n-p.first[e]))); err != nil {
			return err
		}
	}
	return nil
}

// share is how many pieces one goroutine takes at a time: 8 MiB, so that a cancelled context is noticed soon
// and the last goroutine does not work alone for long.
const share = 64

// parallel runs f over the numbers 0 to n in shares, on as many goroutines as there are CPUs. Each share has a
// buffer of its own, of size bytes.
func parallel(ctx context.Context, n, share, size int, f func(from, to int, buf []byte) error) error {
	workers, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	workers.Go(func() error {
		defer close(next)
		for from := 0; from < n; from += share {
			// The select alone would choose by chance.
			if err := ctx.Err(); err != nil {
				return err
			}
			select {
			case next <- from:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() error {
			buf := make([]byte, size)
			for from := range next {
				if err := f(from, min(from+share, n), buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return workers.Wait()
}

// sums calls f with the checksum of every piece of data, in no order and from many goroutines.
func (p pieces) sums(ctx context.Context, data *os.File, f func(n int, at Extent, sum uint32) error) error {
	return parallel(ctx, p.count(), share, PieceSize, func(from, to int, buf []byte) error {
		return p.each(from, to, func(n int, at Extent) error {
			if err := readFull(data, buf[:at.Length], at.Offset); err != nil {
				return err
			}
			return f(n, at, checksum(buf[:at.Length]))
		})
	})
}

// readFull fills b from offset. The end of the file is a CorruptError: whoever reads here knows that there
// must be data.
func readFull(data *os.File, b []byte, offset int64) error {
	n, err := data.ReadAt(b, offset)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return &CorruptError{data.Name(), offset + int64(n), "the file ends within its data: truncated"}
	default:
		return fmt.Errorf("read %s at offset %d: %w", data.Name(), offset+int64(n), err)
	}
}
