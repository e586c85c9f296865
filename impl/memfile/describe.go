package memfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Describe makes the header of a data file that the VMM has finished, as a diff upon parent, or as a base
// where parent is nil. It syncs data first, because only then do file systems tell holes from data to the
// page; then it takes the extents and sums them up. The layer gets a new ID.
//
// data has the size of the guest's memory and, being a diff, must lie on a file system that keeps holes
// (CheckHoles): where none are told, all that did not change would become zero.
func Describe(ctx context.Context, data *os.File, parent *Header) (*Header, error) {
	h := &Header{ID: NewID()}
	if parent != nil {
		h.Parent, h.Generation = parent.ID, parent.Generation+1
	}
	info, err := data.Stat()
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", data.Name(), err)
	}
	h.MemorySize = info.Size()
	if parent != nil && parent.MemorySize != h.MemorySize {
		return nil, &CorruptError{data.Name(), h.MemorySize, fmt.Sprintf("the parent's memory has %d bytes", parent.MemorySize)}
	}
	if err := data.Sync(); err != nil {
		return nil, fmt.Errorf("describe %s: %w", data.Name(), err)
	}
	if h.Extents, err = dataExtents(data, h.MemorySize); err != nil {
		return nil, err
	}
	p := newPieces(h.Extents)
	h.Checksums = make([]uint32, p.count())
	err = p.sums(ctx, data, func(n int, _ Extent, sum uint32) error {
		h.Checksums[n] = sum
		return nil
	})
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", data.Name(), err)
	}
	return h, nil
}

// dataExtents asks the file system where the first size bytes of data hold data.
func dataExtents(data *os.File, size int64) ([]Extent, error) {
	var extents []Extent
	for offset := int64(0); offset < size; {
		start, err := data.Seek(offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && start >= size {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data of %s from %d: %w", data.Name(), offset, err)
		}
		end, err := data.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find holes of %s from %d: %w", data.Name(), start, err)
		}
		end = min(end, size)
		if start%PageSize != 0 || end%PageSize != 0 || end <= start {
			return nil, fmt.Errorf("data of %s from %d to %d: the file system does not keep holes in pages of %d bytes", data.Name(), start, end, PageSize)
		}
		if n := len(extents); n > 0 && extents[n-1].End() == start {
			extents[n-1].Length += end - start
		} else {
			extents = append(extents, Extent{start, end - start})
		}
		offset = end
	}
	return extents, nil
}

// CheckHoles finds out whether the file system of dir tells holes from data to the page, which diffs depend
// on. It writes a small file in dir and removes it; one that a killed call has left is used again, so there is never
// more than one. One dir is for one call at a time.
func CheckHoles(dir string) (err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".holes"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("check holes: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	const pages = 64
	if err := f.Truncate(pages * PageSize); err != nil {
		return fmt.Errorf("check holes: %w", err)
	}
	var want []Extent
	for page := int64(1); page < pages; page += 3 {
		// All zero, which is data nevertheless.
		if _, err := f.WriteAt(make([]byte, PageSize), page*PageSize); err != nil {
			return fmt.Errorf("check holes: %w", err)
		}
		want = append(want, Extent{page * PageSize, PageSize})
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("check holes: %w", err)
	}
	got, err := dataExtents(f, pages*PageSize)
	if err != nil {
		return fmt.Errorf("check holes: %w", err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("check holes: the file system of %s does not tell holes from data by the page; memory snapshots need one that does (ext4, xfs, btrfs, tmpfs)", filepath.Clean(dir))
	}
	return nil
}
