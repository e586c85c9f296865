package process

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readSize is the most that one output event carries: half a Linux pipe's 64 KiB.
	readSize = 32 << 10
	// pipeSize is what a pipe or terminal can hold when its writer exits.
	pipeSize = 64 << 10
	// quiet is how long output may pause after the exit before the end is reported although another
	// process still holds the pipe (`server &`, `exec > >(tee log)`).
	quiet = 250 * time.Millisecond
	// drainLimit bounds that wait for a left-behind process that never stops writing.
	drainLimit = 2 * time.Second
)

// source reads one output of a process: a pipe or the master side of its terminal.
//
// The exit is reported when every writer has closed the output; or, where some process other than the
// one that exited keeps it open, after a pause of quiet, at the latest after drainLimit. What the
// process itself wrote is in the pipe by the time it has exited, so none of it is lost. Later output is
// read and thrown away until the last writer closes it: a daemon left behind must not block or get
// SIGPIPE.
type source struct {
	f       *os.File
	kind    Kind
	fan     *fanout
	exited  atomic.Int64  // nanoseconds since the epoch of the exit, 0 while running
	drained chan struct{} // closed when no more will be published
}

func newSource(f *os.File, kind Kind, fan *fanout) *source {
	return &source{f: f, kind: kind, fan: fan, drained: make(chan struct{})}
}

// processExited starts the drain.
func (s *source) processExited() {
	now := time.Now()
	s.exited.Store(now.UnixNano())
	_ = s.f.SetReadDeadline(now.Add(quiet))
}

// run reads until the output is closed everywhere, then closes its file.
func (s *source) run() {
	defer func() { _ = s.f.Close() }()
	open := s.publishAll()
	close(s.drained)
	if open {
		_, _ = io.Copy(io.Discard, onlyReader{s.f})
	}
}

// publishAll publishes until the end of the output or of the drain; it reports whether the output is
// still open.
func (s *source) publishAll() bool {
	buf := make([]byte, readSize)
	for {
		n, err := s.f.Read(buf)
		s.publish(buf[:n])
		at := s.exited.Load()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return s.publishRest(buf)
		case err != nil: // EOF; EIO from a terminal
			return false
		case at == 0:
		case time.Since(time.Unix(0, at)) > drainLimit:
			return s.publishRest(buf)
		default:
			_ = s.f.SetReadDeadline(time.Now().Add(quiet))
		}
	}
}

// publishRest publishes what is readable without waiting: the reader may have been late, not the
// output. At most what the pipe could hold at the exit, for a daemon may refill it for ever.
func (s *source) publishRest(buf []byte) bool {
	_ = s.f.SetReadDeadline(time.Time{})
	conn, err := s.f.SyscallConn()
	if err != nil {
		return false
	}
	for total := 0; total < pipeSize; {
		var n int
		var rerr error
		if err := conn.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf)
			return true
		}); err != nil {
			return false
		}
		switch {
		case rerr == unix.EINTR:
			continue
		case rerr == unix.EAGAIN:
			return true
		case rerr != nil || n <= 0:
			return false
		}
		s.publish(buf[:n])
		total += n
	}
	return true
}

func (s *source) publish(p []byte) {
	if len(p) > 0 {
		s.fan.publish(Event{Kind: s.kind, Data: append([]byte(nil), p...)})
	}
}

// onlyReader hides the file's WriterTo, which would try to splice.
type onlyReader struct{ io.Reader }
