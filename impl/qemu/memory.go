package qemu

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// memory is the guest's. QEMU 7.2 tells nobody which pages are dirty, and the kernel's soft-dirty bits are
// not built everywhere, so changes are found by where a page lives.
//
// A machine that booted has its memory in a memfd that it shares with us: what was never touched is a hole
// of the file. A machine that was loaded maps its memory file privately: what it has written since is in
// QEMU's own memory and not in the file, which /proc/PID/pagemap tells page by page. Both are everything
// since boot or load, so every Diff repeats the one before; that is more than Firecracker writes and as
// legal to merge.
type memory struct {
	size    int64
	file    *os.File
	private bool // QEMU maps file privately
	// saved says that a snapshot exists that a Diff may be put on top of, so that a page of zeros counts.
	saved bool
}

// newMemory makes the memory of a machine that boots.
func newMemory(size int64) (*memory, error) {
	fd, err := unix.MemfdCreate("guest-memory", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the guest's memory: %w", err)
	}
	m := &memory{size: size, file: os.NewFile(uintptr(fd), "guest-memory")}
	if err := m.file.Truncate(size); err != nil {
		m.close()
		return nil, fmt.Errorf("size the guest's memory: %w", err)
	}
	return m, nil
}

// openMemory takes a memory file as the memory of a machine that is loaded. The file stays as it is. Unlike
// Firecracker it refuses one that is larger than the machine's memory, too: it is another machine's.
func openMemory(path string, size int64) (*memory, error) {
	// Of a FIFO there is nothing to wait for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("Failed to load guest memory: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = fmt.Errorf("memory file %s has %d bytes, the machine of the snapshot has %d", path, info.Size(), size)
	}
	if err != nil {
		_ = f.Close()                                                     // nothing was written
		return nil, fmt.Errorf("Failed to restore guest memory: %w", err) //nolint:staticcheck // Firecracker's words
	}
	return &memory{size: size, file: f, private: true}, nil
}

func (m *memory) close() {
	if m != nil {
		_ = m.file.Close() // nothing was written that could be lost
	}
}

// chunk is how much is read at once, in bytes, and all the memory that a snapshot takes.
const chunk = 1 << 20

// save writes the memory of a stopped QEMU into dst: all of it, or as a diff what may have changed.
func (m *memory) save(pid int, diff bool, dst *memoryFile) error {
	var err error
	switch {
	case m.private:
		err = m.savePrivate(pid, diff, dst)
	case diff && (m.saved || !dst.fresh):
		err = m.saveTouched(dst)
	default:
		err = m.saveShared(dst)
	}
	if err != nil {
		return err
	}
	m.saved = true
	return nil
}

// saveShared writes all of a memory that is in the file. Zeros become holes.
func (m *memory) saveShared(dst *memoryFile) error {
	buf := make([]byte, chunk)
	for at := int64(0); at < m.size; {
		start, _, err := nextData(m.file, at, m.size)
		if err != nil {
			return err
		}
		if err := dst.clear(at, start-at); err != nil {
			return err
		}
		if start >= m.size {
			return nil
		}
		piece := buf[:min(chunk, m.size-start)]
		if err := readFull(m.file, piece, start); err != nil {
			return err
		}
		if err := dst.writeSparse(start, piece); err != nil {
			return err
		}
		at = start + int64(len(piece))
	}
	return nil
}

// saveTouched writes the pages that the guest has touched since it booted. A page that it has zeroed is
// data: the layer below may hold what was there before.
func (m *memory) saveTouched(dst *memoryFile) error {
	buf := make([]byte, chunk)
	for at := int64(0); at < m.size; {
		start, end, err := nextData(m.file, at, m.size)
		if err != nil {
			return err
		}
		for ; start < end; start += chunk {
			piece := buf[:min(chunk, end-start)]
			if err := readFull(m.file, piece, start); err != nil {
				return err
			}
			if err := dst.write(start, piece); err != nil {
				return err
			}
		}
		at = end
	}
	return nil
}

// savePrivate writes the memory of a loaded machine: the pages that are QEMU's own and, unless a diff is
// wanted, those of the file below them.
func (m *memory) savePrivate(pid int, diff bool, dst *memoryFile) error {
	name, err := nameInMaps(m.file)
	if err != nil {
		return err
	}
	maps, err := mappingsOf(pid, name, m.size)
	if err != nil {
		return err
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close()
	s := &privateSave{memory: m, pid: pid, pagemap: pagemap, dst: dst, buf: make([]byte, chunk), entries: make([]byte, chunk/pageSize*8)}
	for _, part := range maps {
		for at := part.start; at < part.end; at += chunk {
			n := min(chunk, int(part.end-at))
			if err := s.piece(at, part.offset+int64(at-part.start), n, diff); err != nil {
				return err
			}
		}
	}
	return nil
}

// privateSave is the state of one savePrivate.
type privateSave struct {
	*memory
	pid     int
	pagemap *os.File
	dst     *memoryFile
	buf     []byte
	entries []byte
	runs    []run
}

// piece saves n bytes that QEMU has mapped at address, which are at offset of the memory.
func (s *privateSave) piece(address uintptr, offset int64, n int, diff bool) error {
	entries := s.entries[:n/pageSize*8]
	if err := readFull(s.pagemap, entries, int64(address/pageSize*8)); err != nil {
		return err
	}
	s.runs = changedRuns(s.runs[:0], entries)
	buf := s.buf[:n]
	if diff {
		if err := s.readChanged(buf, address); err != nil {
			return err
		}
		for _, r := range s.runs {
			if err := s.dst.write(offset+int64(r.start), buf[r.start:r.end]); err != nil {
				return err
			}
		}
		return nil
	}
	start, _, err := nextData(s.file, offset, s.size)
	if err != nil {
		return err
	}
	if below := start < offset+int64(n); !below && len(s.runs) == 0 {
		return s.dst.clear(offset, int64(n))
	} else if below {
		err = readFull(s.file, buf, offset)
	} else {
		clear(buf)
	}
	if err != nil {
		return err
	}
	if err := s.readChanged(buf, address); err != nil {
		return err
	}
	return s.dst.writeSparse(offset, buf)
}

// readChanged reads the changed runs of QEMU's memory, each to its place in buf, with one call.
func (s *privateSave) readChanged(buf []byte, address uintptr) error {
	if len(s.runs) == 0 {
		return nil
	}
	local := make([]unix.Iovec, len(s.runs))
	remote := make([]unix.RemoteIovec, len(s.runs))
	want := 0
	for i, r := range s.runs {
		local[i].Base = &buf[r.start]
		local[i].SetLen(r.end - r.start)
		remote[i] = unix.RemoteIovec{Base: address + uintptr(r.start), Len: r.end - r.start}
		want += r.end - r.start
	}
	n, err := unix.ProcessVMReadv(s.pid, local, remote, 0)
	if err != nil {
		return fmt.Errorf("read the memory of qemu: %w", err)
	}
	if n != want {
		return fmt.Errorf("read the memory of qemu: %d of %d bytes", n, want)
	}
	return nil
}
