package memfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
)

var zeroPage [PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:len(page)]) }

// stretch is how much memory Merge and Flatten take at a time, in bytes; a multiple of PieceSize.
const stretch = 1 << 20

// Merge writes the chain's content as a new base at dst, with its header beside it: written under other
// names, synced, renamed, the header last and the directory synced. A data file without a header is thus an
// unfinished merge. Pages that are all zero become holes. The base has the ID and generation of the chain's
// last layer, so that diffs upon that fit upon it.
//
// dst must not exist: replacing one of two files after the other could not be atomic. What is read is
// compared with its checksums, so a damaged layer cannot get into a base with fresh ones. On an error
// nothing is left at dst.
func (c *Chain) Merge(ctx context.Context, dst string) (_ *Header, err error) {
	for _, name := range []string{dst, dst + HeaderSuffix} {
		if _, err := os.Lstat(name); err == nil {
			return nil, fmt.Errorf("merge into %s: %w", name, os.ErrExist)
		}
	}
	beside := dst + ".new"
	f, err := os.OpenFile(beside, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("merge memory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("merge memory into %s: %w", dst, err), f.Close(), removeAny(beside, dst))
		}
	}()
	h, err := c.mergeInto(ctx, f)
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(beside, dst); err != nil {
		return nil, err
	}
	if err := WriteHeader(dst, h); err != nil {
		return nil, err
	}
	return h, f.Close()
}

// removeAny removes those of the files that exist.
func removeAny(names ...string) error {
	var errs []error
	for _, name := range names {
		if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// merged is what one stretch of the memory contributes to a header.
type merged struct {
	extents []Extent // cut at the end of the stretch
	sums    []uint32
}

func (c *Chain) mergeInto(ctx context.Context, f *os.File) (*Header, error) {
	if err := f.Truncate(c.size); err != nil {
		return nil, err
	}
	parts := make([]merged, (c.size+stretch-1)/stretch)
	err := parallel(ctx, len(parts), 8, stretch, func(from, to int, buf []byte) error {
		for i := from; i < to; i++ {
			var err error
			if parts[i], err = c.mergeStretch(f, int64(i)*stretch, buf); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	top := c.Top()
	h := &Header{MemorySize: c.size, Generation: top.Generation, ID: top.ID}
	for _, p := range parts {
		for _, e := range p.extents {
			if n := len(h.Extents); n > 0 && h.Extents[n-1].End() == e.Offset {
				h.Extents[n-1].Length += e.Length
			} else {
				h.Extents = append(h.Extents, e)
			}
		}
		h.Checksums = append(h.Checksums, p.sums...)
	}
	return h, h.check()
}

// mergeStretch copies what is not zero of the stretch at offset.
func (c *Chain) mergeStretch(f *os.File, offset int64, buf []byte) (merged, error) {
	buf = buf[:min(stretch, c.size-offset)]
	if r := c.Lookup(offset); r.Layer == Hole && r.Length >= int64(len(buf)) {
		return merged{}, nil
	}
	if _, err := c.ReadAt(buf, offset); err != nil {
		return merged{}, err
	}
	var m merged
	for _, e := range notZero(buf) {
		if _, err := f.WriteAt(buf[e.Offset:e.End()], offset+e.Offset); err != nil {
			return merged{}, err
		}
		m.extents = append(m.extents, Extent{offset + e.Offset, e.Length})
	}
	p := newPieces(m.extents)
	m.sums = make([]uint32, p.count())
	return m, p.each(0, p.count(), func(n int, at Extent) error {
		m.sums[n] = checksum(buf[at.Offset-offset : at.End()-offset])
		return nil
	})
}

// notZero returns the parts of buf, in pages, that are not zero.
func notZero(buf []byte) []Extent {
	var out []Extent
	for at := 0; at < len(buf); at += PageSize {
		if isZero(buf[at : at+PageSize]) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End() == int64(at) {
			out[n-1].Length += PageSize
		} else {
			out = append(out, Extent{int64(at), PageSize})
		}
	}
	return out
}
