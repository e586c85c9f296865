package uffd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

// server serves one VMM. One goroutine reads events and hands faults to workers.
type server struct {
	chain  *memfile.Chain
	vmm    *vmm
	pages  *pages
	batch  int64 // in pages
	logger *slog.Logger
	wake   int // eventfd that ends the reader's wait

	// changing is held for writing while events are read, and for reading while pages are filled. A removal
	// that has been read makes the kernel drop the pages a moment later; old content that is put there after
	// that would stay. Before a removal is read the kernel itself refuses to fill.
	changing sync.RWMutex
	removals uint64 // count of removals; by changing

	faults chan int64
	// waiting counts faults from when they are read until they are served. Prefetching lets them go first.
	waiting atomic.Int64

	mu       sync.Mutex
	deferred []int64 // faults that the kernel refused because of an unread removal

	record recorder
	counts struct{ faults, copied, zeroed, prefetched, deferred, removals atomic.Int64 }
}

// errEnded ends all goroutines when the VMM has ended.
var errEnded = errors.New("vmm ended")

// serve returns nil when the VMM has ended by itself.
func serve(ctx context.Context, cfg Config, chain *memfile.Chain, v *vmm) error {
	s := &server{chain: chain, vmm: v, pages: newPages(v.regions, chain.Size()), batch: int64(cfg.Batch) / memfile.PageSize,
		logger: cfg.Logger, faults: make(chan int64, 256)}
	var err error
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	defer unix.Close(s.wake) //nolint:errcheck // nothing was written that could be lost
	if cfg.WorkingSet != "" {
		s.record.start() // before the first fault
	}
	all, running := errgroup.WithContext(ctx)
	all.Go(func() error { return s.read(running) })
	all.Go(func() error {
		<-running.Done()
		return s.awake()
	})
	for range cfg.Workers {
		all.Go(func() error { return s.work(running) })
	}
	if cfg.WorkingSet != "" {
		all.Go(func() error { return s.workingSet(running, cfg.WorkingSet, cfg.RecordFor) })
	}
	err = all.Wait()
	c := &s.counts
	s.logger.Info("pages served", "vmm", v.pid, "faults", c.faults.Load(), "copied", c.copied.Load(), "zeroed", c.zeroed.Load(),
		"prefetched", c.prefetched.Load(), "removals", c.removals.Load(), "deferred", c.deferred.Load())
	switch {
	case errors.Is(err, errEnded):
		return nil
	case err != nil && v.ended(0):
		// What failed did so because the VMM was going.
		s.logger.Info("the vmm ended while it was served", "vmm", v.pid, "error", err.Error())
		return nil
	case ctx.Err() != nil:
		return errors.Join(ErrStopped, err)
	}
	return err
}

func (s *server) awake() error {
	_, err := unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("write an eventfd: %w", err)
	}
	return nil
}

// retryAfter is how long a refused fault waits: the kernel refuses until the thread that removes has been
// scheduled. With faults waiting the reader never sleeps longer, since there may be no further event: all
// vCPUs may be among those who wait.
const retryAfter = time.Millisecond

// read reads events until the VMM has ended.
func (s *server) read(ctx context.Context) error {
	buf := make([]byte, 64*messageSize)
	fds := []unix.PollFd{
		{Fd: int32(s.vmm.memory.fd), Events: unix.POLLIN}, {Fd: int32(s.vmm.pidfd), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN},
	}
	for {
		timeout := -1
		if s.refused() > 0 {
			timeout = int(retryAfter.Milliseconds())
		}
		n, err := unix.Poll(fds, timeout)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for page faults: %w", err)
		case fds[1].Revents != 0:
			return errEnded
		case ctx.Err() != nil:
			return ctx.Err()
		case fds[0].Revents&unix.POLLNVAL != 0:
			return errors.New("wait for page faults: the userfaultfd is not valid")
		}
		if fds[2].Revents != 0 {
			var count [8]byte
			_, _ = unix.Read(s.wake, count[:]) // only resets it
		}
		var faults []int64
		if fds[0].Revents != 0 {
			if faults, err = s.drain(buf); err != nil {
				return err
			}
		}
		// A mere wake-up is no reason to try again at once.
		if n == 0 || fds[0].Revents != 0 {
			faults = append(faults, s.takeRefused()...)
		}
		for _, page := range faults {
			select {
			case s.faults <- page:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// drains bounds how often events are read at a stretch, while nothing is filled.
const drains = 16

// drain reads the events that there are, applies removals and returns the pages that are needed. Within one
// batch of events a fault may come before the removal that caused it.
func (s *server) drain(buf []byte) (faults []int64, err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	for range drains {
		events, err := s.vmm.memory.events(buf)
		if err != nil {
			return nil, fmt.Errorf("read page faults: %w", err)
		}
		for _, e := range events {
			switch e.event {
			case eventPagefault:
				page, ok := s.pages.at(e.start)
				if !ok {
					return nil, fmt.Errorf("a page fault at %#x, outside of the guest's memory", e.start)
				}
				s.counts.faults.Add(1)
				s.waiting.Add(1)
				faults = append(faults, page)
			case eventRemove:
				s.pages.remove(e.start, e.end)
				s.removals++
				s.counts.removals.Add(1)
			default:
				return nil, fmt.Errorf("unknown event %#x of the userfaultfd", e.event)
			}
		}
		if len(events) < len(buf)/messageSize {
			break
		}
	}
	return faults, nil
}

func (s *server) refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.deferred)
}

func (s *server) takeRefused() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.deferred
	s.deferred = nil
	return all
}

// putOff keeps a fault for later and tells the reader, which may be in a wait without end.
func (s *server) putOff(page int64) error {
	s.mu.Lock()
	s.deferred = append(s.deferred, page)
	s.mu.Unlock()
	s.counts.deferred.Add(1)
	return s.awake()
}

// pageBuffer maps memory that UFFDIO_COPY may read from: page aligned and unknown to the garbage collector.
func (s *server) pageBuffer() ([]byte, error) {
	buf, err := unix.Mmap(-1, 0, int(s.batch)*memfile.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a page buffer: %w", err)
	}
	return buf, nil
}

// work serves faults.
func (s *server) work(ctx context.Context) error {
	buf, err := s.pageBuffer()
	if err != nil {
		return err
	}
	defer unix.Munmap(buf) //nolint:errcheck // fails for no mapping alone
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case page := <-s.faults:
			_, err := s.fillAround(page, buf, true)
			if errors.Is(err, unix.EAGAIN) {
				err = s.putOff(page)
			} else {
				s.waiting.Add(-1)
			}
			if err != nil {
				return err
			}
		}
	}
}
