package uffd

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

// fillAround fills the window around page and returns it. EAGAIN says that the kernel refuses until a
// removal has been read, and that page is not there yet. A page that somebody waits for is woken even if it
// was there already.
func (s *server) fillAround(page int64, buf []byte, waitedFor bool) (window, error) {
	s.changing.RLock()
	w, seen := s.window(page), s.removals
	s.changing.RUnlock()
	if waitedFor {
		s.record.add(w)
	}
	if !w.zero {
		// Outside of the lock, because it may wait for a disk.
		buf = buf[:(w.to-w.from)*memfile.PageSize]
		if _, err := s.chain.ReadAt(buf, w.from*memfile.PageSize); err != nil {
			return w, fmt.Errorf("read page %d: %w", page, err)
		}
	}
	s.changing.RLock()
	defer s.changing.RUnlock()
	if s.removals != seen {
		w, buf = s.afterRemoval(w, buf, page)
	}
	return w, s.fill(w, buf, page, waitedFor)
}

// afterRemoval cuts a window to its one page that must be filled, because pages were given away since it was
// chosen: those must not come back. What was read for a page is right unless it is among them.
func (s *server) afterRemoval(w window, buf []byte, page int64) (window, []byte) {
	if w.zero || s.pages.removed.has(page) {
		return window{page, page + 1, true}, nil
	}
	return window{page, page + 1, false}, buf[(page-w.from)*memfile.PageSize:][:memfile.PageSize]
}

// fill fills the window from buf, or with zeros. s.changing is held for reading.
func (s *server) fill(w window, buf []byte, page int64, waitedFor bool) error {
	at := w.from
	for at < w.to {
		address, _, _ := s.pages.address(at)
		n, err := s.put(address, at, w, buf)
		for range n / memfile.PageSize {
			s.pages.filled.set(at)
			at++
		}
		switch {
		case err == nil || n > 0:
			// All, or a part: the next call tells why no more.
		case errors.Is(err, unix.EEXIST):
			s.pages.filled.set(at)
			if at == page && waitedFor {
				if err := s.vmm.memory.wake(address, memfile.PageSize); err != nil {
					return s.failed(fmt.Errorf("wake who waits for page %d: %w", at, err))
				}
			}
			at++
		case errors.Is(err, unix.EAGAIN):
			if at > page {
				return nil
			}
			return unix.EAGAIN
		default:
			return s.failed(fmt.Errorf("fill page %d: %w", at, err))
		}
	}
	return nil
}

func (s *server) put(address uint64, at int64, w window, buf []byte) (int64, error) {
	if w.zero {
		n, err := s.vmm.memory.zero(address, (w.to-at)*memfile.PageSize)
		s.counts.zeroed.Add(n / memfile.PageSize)
		return n, err
	}
	n, err := s.vmm.memory.fill(address, buf[(at-w.from)*memfile.PageSize:])
	s.counts.copied.Add(n / memfile.PageSize)
	return n, err
}

// failed returns err, or errEnded where the VMM is going: its memory is unmapped before its end can be seen.
func (s *server) failed(err error) error {
	if (errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)) && s.vmm.ended(time.Second) {
		return errEnded
	}
	return err
}
