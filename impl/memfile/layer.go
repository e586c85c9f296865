package memfile

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// layer is one opened layer of a chain.
type layer struct {
	data   *os.File
	header *Header
	pieces pieces
	// seen has a bit per piece whose checksum was found right.
	seen []atomic.Uint32
}

// openLayer opens the data file at path and its header.
func openLayer(path string) (*layer, error) {
	h, err := ReadHeader(path)
	if err != nil {
		return nil, err
	}
	// Opening a FIFO would wait for a writer.
	data, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open memory layer: %w", err)
	}
	l := &layer{data: data, header: h, pieces: newPieces(h.Extents)}
	l.seen = make([]atomic.Uint32, (l.pieces.count()+31)/32)
	if err := l.sized(); err != nil {
		_ = data.Close()
		return nil, err
	}
	return l, nil
}

func (l *layer) sized() error {
	info, err := l.data.Stat()
	if err != nil {
		return fmt.Errorf("open memory layer: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() != l.header.MemorySize {
		return &CorruptError{l.data.Name(), info.Size(), fmt.Sprintf("not a regular file of %d bytes, as its header says: truncated or foreign", l.header.MemorySize)}
	}
	return nil
}

func (l *layer) isSeen(n int) bool { return l.seen[n/32].Load()&(1<<(n%32)) != 0 }

func (l *layer) setSeen(n int) { l.seen[n/32].Or(1 << (n % 32)) }

func (l *layer) compare(n int, at Extent, sum uint32) error {
	if want := l.header.Checksums[n]; sum != want {
		return &CorruptError{l.data.Name(), at.Offset, fmt.Sprintf("%d bytes with checksum %08x, the header says %08x", at.Length, sum, want)}
	}
	l.setSeen(n)
	return nil
}

// whole holds buffers for pieces of which only a part is wanted.
var whole = sync.Pool{New: func() any { return new([PieceSize]byte) }}

// read fills b from offset on, all of which must be data of this layer.
func (l *layer) read(b []byte, offset int64) error {
	for len(b) > 0 {
		n, at, ok := l.pieces.of(offset)
		if !ok {
			return fmt.Errorf("read %s at %d: a hole", l.data.Name(), offset)
		}
		part := b[:min(at.End()-offset, int64(len(b)))]
		if err := l.readPiece(part, offset, n, at); err != nil {
			return err
		}
		b, offset = b[len(part):], offset+int64(len(part))
	}
	return nil
}

// readPiece fills b from offset on with a part of piece n, which lies at at.
func (l *layer) readPiece(b []byte, offset int64, n int, at Extent) error {
	if l.isSeen(n) {
		return readFull(l.data, b, offset)
	}
	if int64(len(b)) == at.Length {
		if err := readFull(l.data, b, offset); err != nil {
			return err
		}
		return l.compare(n, at, checksum(b))
	}
	buf := whole.Get().(*[PieceSize]byte) //nolint:forcetypeassert // the pool holds nothing else
	defer whole.Put(buf)
	all := buf[:at.Length]
	if err := readFull(l.data, all, at.Offset); err != nil {
		return err
	}
	if err := l.compare(n, at, checksum(all)); err != nil {
		return err
	}
	copy(b, all[offset-at.Offset:])
	return nil
}

// verify compares all pieces. In a base it also looks for data where the header has a hole: a VMM that maps
// the file would see it.
func (l *layer) verify(ctx context.Context) error {
	if err := l.sized(); err != nil {
		return err
	}
	if err := l.pieces.sums(ctx, l.data, l.compare); err != nil {
		return fmt.Errorf("verify memory layer: %w", err)
	}
	if !l.header.IsBase() {
		return nil
	}
	extents, err := dataExtents(l.data, l.header.MemorySize)
	if err != nil {
		return fmt.Errorf("verify memory layer: %w", err)
	}
	return l.zeroOutside(ctx, extents)
}

// zeroOutside checks that what the file system has as data, and the header has not, is zero.
func (l *layer) zeroOutside(ctx context.Context, extents []Extent) error {
	buf := make([]byte, PieceSize)
	for _, r := range overlay(overlay([]Run{{0, l.header.MemorySize, Hole}}, extents, 1), l.header.Extents, 0) {
		for at := r.Offset; r.Layer == 1 && at < r.End(); at += PieceSize {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("verify memory layer: %w", err)
			}
			part := buf[:min(PieceSize, r.End()-at)]
			if err := readFull(l.data, part, at); err != nil {
				return fmt.Errorf("verify memory layer: %w", err)
			}
			for page := 0; page < len(part); page += PageSize {
				if !isZero(part[page : page+PageSize]) {
					return &CorruptError{l.data.Name(), at + int64(page), "data where the header has a hole"}
				}
			}
		}
	}
	return nil
}

// Verify reads the layer whose data file is at path and compares it with its header. What is torn,
// truncated, changed or foreign is a *CorruptError with file and offset. Whether it lies upon the right
// parent is found by Open.
func Verify(ctx context.Context, path string) error {
	l, err := openLayer(path)
	if err != nil {
		return err
	}
	defer l.data.Close()
	return l.verify(ctx)
}
