// Package fiemap tells which parts of two files are the same blocks of a file system that can share them.
package fiemap

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Part is a part of a file, in bytes.
type Part struct{ Offset, Length int64 }

// End is the first byte behind it.
func (p Part) End() int64 { return p.Offset + p.Length }

// ErrUnknown says that a file system does not tell.
var ErrUnknown = errors.New("the file system does not tell which blocks a file has")

// Unshared returns the parts of the first size bytes in which a and b may differ, in order: all but what both have
// as the same blocks, or as holes. Both must be synced, and neither may be written to meanwhile.
func Unshared(a, b *os.File, size int64) ([]Part, error) {
	if same, err := oneFileSystem(a, b); err != nil || !same {
		return []Part{{0, size}}, err
	}
	left, err := extents(a, size)
	if err != nil {
		return nil, err
	}
	right, err := extents(b, size)
	if err != nil {
		return nil, err
	}
	return unshared(left, right, size), nil
}

func unshared(left, right []extent, size int64) []Part {
	var parts []Part
	for at := int64(0); at < size; {
		var x, y extent
		x, left = segment(left, at, size)
		y, right = segment(right, at, size)
		end := min(x.end(), y.end(), size)
		if !x.sharedWith(y) {
			if n := len(parts); n > 0 && parts[n-1].End() == at {
				parts[n-1].Length += end - at
			} else {
				parts = append(parts, Part{at, end - at})
			}
		}
		at = end
	}
	return parts
}

func oneFileSystem(a, b *os.File) (bool, error) {
	var x, y unix.Stat_t
	if err := errors.Join(unix.Fstat(int(a.Fd()), &x), unix.Fstat(int(b.Fd()), &y)); err != nil {
		return false, fmt.Errorf("stat %s and %s: %w", a.Name(), b.Name(), err)
	}
	return x.Dev == y.Dev, nil
}

// segment is what a file has from at on, an extent or a hole up to the next one, and the extents from there on.
func segment(extents []extent, at, size int64) (extent, []extent) {
	for len(extents) > 0 && extents[0].end() <= at {
		extents = extents[1:]
	}
	switch {
	case len(extents) == 0:
		return extent{logical: at, length: size - at, flags: hole}, nil
	case extents[0].logical > at:
		return extent{logical: at, length: extents[0].logical - at, flags: hole}, extents
	}
	return extents[0], extents
}

// Flags of linux/fiemap.h, and one of ours for what is between extents.
const (
	flagLast   = 0x1
	flagMerged = 0x1000
	flagShared = 0x2000
	hole       = 1 << 31
)

// extent is a stretch of a file that lies in one piece on the disk.
type extent struct {
	logical, physical, length int64
	flags                     uint32
}

func (e extent) end() int64 { return e.logical + e.length }

// sharedWith says whether both are a hole, or the same blocks. Blocks are only believed to be so where the file
// system says of both files that they are shared, and nothing else of them: not compressed, unwritten or inline.
func (e extent) sharedWith(o extent) bool {
	if e.flags == hole || o.flags == hole {
		return e.flags == o.flags
	}
	plain := func(e extent) bool { return e.flags&^(flagLast|flagMerged) == flagShared }
	return plain(e) && plain(o) && e.physical-e.logical == o.physical-o.logical
}

// FS_IOC_FIEMAP of linux/fs.h, and struct fiemap and fiemap_extent of linux/fiemap.h.
const (
	request   = 0xc020660b
	flagSync  = 0x1
	batch     = 512
	endOfFile = ^uint64(0)
)

type header struct {
	start, length                uint64
	flags, mapped, count, unused uint32
}

type record struct {
	logical, physical, length uint64
	unused                    [2]uint64
	flags                     uint32
	unused2                   [3]uint32
}

// extents asks for those of the first size bytes.
func extents(f *os.File, size int64) ([]extent, error) {
	var found []extent
	for at := uint64(0); at < uint64(size); {
		var q struct {
			header
			records [batch]record
		}
		q.start, q.length, q.flags, q.count = at, endOfFile-at, flagSync, batch
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&q))) //nolint:gosec // the call has no other form
		switch errno {
		case 0:
		case unix.EOPNOTSUPP, unix.ENOTTY:
			return nil, ErrUnknown
		default:
			return nil, fmt.Errorf("list the extents of %s: %w", f.Name(), errno)
		}
		if q.mapped == 0 {
			break
		}
		for _, r := range q.records[:q.mapped] {
			found = append(found, extent{int64(r.logical), int64(r.physical), int64(r.length), r.flags})
			at = r.logical + r.length
			if r.flags&flagLast != 0 {
				return found, nil
			}
		}
	}
	return found, nil
}
