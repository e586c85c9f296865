package qemu

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// memoryFile is the memory file that a snapshot writes: as large as the guest's memory, an offset in it
// being an offset in the memory. Like Firecracker's, it is overwritten in place where it exists with that
// size, so that a Diff onto a copy of its base is a merge.
type memoryFile struct {
	f       *os.File
	fresh   bool  // it was empty, so what is not written reads as zero
	written int64 // bytes since the disk was last set to work
}

// openMemoryFile makes path a file of size bytes without changing one that has that size.
func openMemoryFile(path string, size int64) (*memoryFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("Cannot perform open on the memory backing file: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	m := &memoryFile{f: f}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		m.fresh = true
		err = f.Truncate(0)
		if err == nil {
			err = f.Truncate(size)
		}
	}
	if err != nil {
		_ = f.Close()                                                                                   // nothing was written
		return nil, fmt.Errorf("Cannot perform set_length on the memory backing file: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	return m, nil
}

// flushEvery is how many bytes are written before the disk is set to work on them, so that the final sync
// does not find all of it still to do.
const flushEvery = 8 << 20

// write puts bytes where they belong.
func (m *memoryFile) write(offset int64, buf []byte) error {
	if _, err := m.f.WriteAt(buf, offset); err != nil {
		return err
	}
	m.written += int64(len(buf))
	if m.written < flushEvery {
		return nil
	}
	m.written = 0
	// A hint: what it fails to do, the final sync does.
	_ = unix.SyncFileRange(int(m.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	return nil
}

// writeSparse does the same with holes for pages of zeros.
func (m *memoryFile) writeSparse(offset int64, buf []byte) error {
	return zeroRuns(buf,
		func(start, end int) error { return m.write(offset+int64(start), buf[start:end]) },
		func(start, end int) error { return m.clear(offset+int64(start), int64(end-start)) })
}

// clear makes a range read as zero without taking room.
func (m *memoryFile) clear(offset, length int64) error {
	if m.fresh || length == 0 {
		return nil
	}
	return unix.Fallocate(int(m.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
}

// close ends the writing, on the disk if sync says so.
func (m *memoryFile) close(sync bool) error {
	var err error
	if sync {
		err = m.f.Sync()
	}
	if closeErr := m.f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// nextData is the first range of data of f at or after offset; start is size where none follows.
func nextData(f *os.File, offset, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return size, size, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find data in %s: %w", f.Name(), err)
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, fmt.Errorf("find holes in %s: %w", f.Name(), err)
	}
	return min(start, size), min(end, size), nil
}

// readFull reads all of buf: memory that ends early is an error, never zeros.
func readFull(f *os.File, buf []byte, offset int64) error {
	n, err := f.ReadAt(buf, offset)
	if n == len(buf) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s at %d: %w", f.Name(), offset+int64(n), err)
}
