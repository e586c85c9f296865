package uffd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/internal/atomicfile"
)

// The file of a working set, little endian: the magic, the CRC32C of what follows, and per stretch of pages
// its first one and their number, 32 bits each, in the order of their first faults.
const (
	setMagic = "WRENNWS1"
	setHead  = 8 + 4
	// maxStretches bounds what is recorded and read: 8 MiB of file.
	maxStretches = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recorder notes what was needed first.
type recorder struct {
	mu        sync.Mutex
	on        bool
	stretches []window
}

func (r *recorder) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on = true
}

func (r *recorder) add(w window) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.on && len(r.stretches) < maxStretches {
		r.stretches = append(r.stretches, w)
	}
}

func (r *recorder) stop() []window {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.stretches
	r.on, r.stretches = false, nil
	return all
}

func encodeSet(set []window) []byte {
	le := binary.LittleEndian
	b := make([]byte, setHead, setHead+8*len(set))
	copy(b, setMagic)
	for _, w := range set {
		b = le.AppendUint32(b, uint32(w.from))
		b = le.AppendUint32(b, uint32(w.to-w.from))
	}
	le.PutUint32(b[8:], crc32.Checksum(b[setHead:], castagnoli))
	return b
}

// decodeSet reads what encodeSet wrote, for a memory of so many pages.
func decodeSet(b []byte, pages int64) ([]window, error) {
	le := binary.LittleEndian
	if len(b) < setHead || string(b[:8]) != setMagic || len(b) > setHead+8*maxStretches || (len(b)-setHead)%8 != 0 {
		return nil, errors.New("not a working set")
	}
	if crc32.Checksum(b[setHead:], castagnoli) != le.Uint32(b[8:]) {
		return nil, errors.New("a working set with another checksum")
	}
	var set []window
	for b := b[setHead:]; len(b) > 0; b = b[8:] {
		w := window{from: int64(le.Uint32(b))}
		w.to = w.from + int64(le.Uint32(b[4:]))
		if w.from == w.to || w.to > pages {
			return nil, fmt.Errorf("pages %d to %d in a working set of a memory of %d", w.from, w.to, pages)
		}
		set = append(set, w)
	}
	return set, nil
}

// workingSet fills what an earlier start needed, or records what this one needs.
func (s *server) workingSet(ctx context.Context, path string, recordFor time.Duration) error {
	b, err := readSet(path)
	var set []window
	if err == nil {
		set, err = decodeSet(b, s.pages.count)
	}
	if err == nil {
		s.record.stop()
		return s.prefetch(ctx, set)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		// It is a hint and nothing else: it is made anew.
		s.logger.Warn("the working set cannot be used", "file", path, "error", err.Error())
	}
	select {
	case <-ctx.Done():
	case <-time.After(recordFor):
	}
	if set = s.record.stop(); len(set) == 0 {
		return nil
	}
	if err := atomicfile.Write(path, encodeSet(set), 0o600); err != nil {
		s.logger.Warn("the working set cannot be kept", "error", err.Error())
	}
	return nil
}

func readSet(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > setHead+8*maxStretches {
		return nil, errors.New("not a regular file of a working set's size")
	}
	return os.ReadFile(path)
}

// prefetch fills the set in its order, whenever no fault waits.
func (s *server) prefetch(ctx context.Context, set []window) error {
	buf, err := s.pageBuffer()
	if err != nil {
		return err
	}
	defer unix.Munmap(buf) //nolint:errcheck // fails for no mapping alone
	began := time.Now()
	for _, w := range set {
		for at := w.from; at < w.to; {
			if err := s.giveWay(ctx); err != nil {
				return err
			}
			if s.pages.filled.has(at) {
				at++
				continue
			}
			done, err := s.fillAround(at, buf, false)
			if errors.Is(err, unix.EAGAIN) {
				// The page will be asked for if it is needed.
				at++
				continue
			}
			if err != nil {
				return fmt.Errorf("prefetch: %w", err)
			}
			s.counts.prefetched.Add(done.to - done.from)
			at = max(done.to, at+1)
		}
	}
	s.logger.Info("working set prefetched", "vmm", s.vmm.pid, "pages", s.counts.prefetched.Load(), "ms", time.Since(began).Milliseconds())
	return nil
}

// giveWay waits while faults wait. It looks often, since to serve one takes some ten microseconds.
func (s *server) giveWay(ctx context.Context) error {
	for s.waiting.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Microsecond):
		}
	}
	return ctx.Err()
}
