package devicemapper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"wrenn/impl/internal/sparsefile"
)

// The head of a CoW file, as the kernel's persistent exception store writes it (dm-snap-persistent.c): magic,
// valid, version, chunk size in sectors, each 32 bits, little-endian.
const (
	cowMagic   = 0x70416e53 // "SnAp"
	cowVersion = 1
	// firstArea is the chunk of the first metadata; the header is alone in chunk 0.
	firstArea = 1
)

// exception says that a chunk of the disk is kept in a chunk of the CoW.
type exception struct{ disk, cow int64 }

// readHeader tells whether the CoW has been used. It returns ErrInvalid or ErrCorrupt.
func readHeader(cow io.ReaderAt) (used bool, err error) {
	header := make([]byte, 16)
	if _, err := cow.ReadAt(header, 0); err != nil {
		return false, fmt.Errorf("%w: its header: %w", ErrCorrupt, err)
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(header[4*i:]) }
	switch {
	case word(0) == 0:
		return false, nil // the kernel writes the header with the first table
	case word(0) != cowMagic || word(2) != cowVersion || word(3) != chunkSectors:
		return false, fmt.Errorf("%w: its header is %x", ErrCorrupt, header)
	case word(1) == 0:
		return true, ErrInvalid
	}
	return true, nil
}

// CheckCow returns ErrInvalid or ErrCorrupt for a file that cannot be the CoW of a disk of size bytes.
func CheckCow(path string, size int64) error {
	cow, err := openCow(path, CowSize(size))
	if err != nil {
		return err
	}
	defer cow.Close()
	if _, err := readHeader(cow); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// exceptions reads what the CoW of a disk of size bytes keeps, in the order in which it was written. A file
// that nothing was written to has none. It returns ErrInvalid or ErrCorrupt.
func exceptions(cow io.ReaderAt, size int64) ([]exception, error) {
	used, err := readHeader(cow)
	if !used || err != nil {
		return nil, err
	}
	chunks := (size + chunkBytes - 1) / chunkBytes
	end := CowSize(size) / chunkBytes
	kept := make(map[int64]bool)
	var out []exception
	area := make([]byte, chunkBytes)
	for at := int64(firstArea); at < end; at += exceptionsPerArea + 1 {
		if _, err := cow.ReadAt(area, at*chunkBytes); err != nil {
			return nil, fmt.Errorf("%w: metadata in chunk %d: %w", ErrCorrupt, at, err)
		}
		for i := range exceptionsPerArea {
			e := exception{
				disk: int64(binary.LittleEndian.Uint64(area[16*i:])), cow: int64(binary.LittleEndian.Uint64(area[16*i+8:])),
			}
			if e.cow == 0 {
				return out, nil // chunk 0 is the header's, so this is the end
			}
			metadata := (e.cow-firstArea)%(exceptionsPerArea+1) == 0
			if e.disk < 0 || e.disk >= chunks || e.cow <= firstArea || e.cow >= end || metadata || kept[e.disk] {
				return nil, fmt.Errorf("%w: chunk %d of the disk in chunk %d", ErrCorrupt, e.disk, e.cow)
			}
			kept[e.disk] = true
			out = append(out, e)
		}
	}
	return out, nil
}

// Flatten writes the disk's content to dst, a plain file that must not exist, with holes where neither the
// origin nor the CoW has data. It reads files alone, and needs no device-mapper: a disk that has a device is
// flushed first (Flush) and not written to meanwhile. After an error dst is removed.
func Flatten(ctx context.Context, d Disk, dst string) (err error) {
	cow, err := openCow(d.Cow, CowSize(d.Size))
	if err != nil {
		return fmt.Errorf("flatten disk %s: %w", d.ID, err)
	}
	defer cow.Close()
	kept, err := exceptions(cow, d.Size)
	if err != nil {
		return fmt.Errorf("flatten disk %s: %s: %w", d.ID, d.Cow, err)
	}
	if err := sparsefile.Copy(ctx, d.Origin, dst); err != nil {
		return fmt.Errorf("flatten disk %s: %w", d.ID, err)
	}
	out, err := os.OpenFile(dst, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(apply(ctx, cow, out, kept, d.Size), out.Close())
	}
	if err != nil {
		return fmt.Errorf("flatten disk %s: %w", d.ID, errors.Join(err, os.Remove(dst)))
	}
	return nil
}

// apply writes the chunks that the CoW keeps over the origin's.
func apply(ctx context.Context, cow, out *os.File, kept []exception, size int64) error {
	info, err := out.Stat()
	if err != nil {
		return err
	}
	if info.Size() > size {
		return fmt.Errorf("the origin has %d bytes, more than the disk's %d", info.Size(), size)
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	chunk := make([]byte, chunkBytes)
	for i, e := range kept {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := cow.ReadAt(chunk, e.cow*chunkBytes); err != nil {
			return fmt.Errorf("%w: chunk %d: %w", ErrCorrupt, e.cow, err)
		}
		at := e.disk * chunkBytes
		if _, err := out.WriteAt(chunk[:min(chunkBytes, size-at)], at); err != nil {
			return err
		}
	}
	return nil
}
