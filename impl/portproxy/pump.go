package portproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pieces are buffers for bodies, and for what moves through tunnels. 32 KiB is what io.Copy takes, beyond which loopback
// gains little; a tunnel holds one only from a read to the end of the write that follows.
var pieces = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// pump copies src to dst until src ends (nil) or either fails, and notes in moved when it carried bytes.
// While src is silent it holds no buffer.
func pump(dst, src net.Conn, moved *atomic.Int64) error {
	read, err := reader(src)
	if err != nil {
		return err
	}
	for {
		buf, n, err := read()
		if n > 0 {
			moved.Store(time.Now().UnixNano())
			_, werr := dst.Write(buf[:n])
			moved.Store(time.Now().UnixNano())
			err = errors.Join(err, werr)
		}
		if buf != nil {
			pieces.Put(buf)
		}
		if err != nil || n == 0 {
			return err
		}
	}
}

// reader returns a function that waits until c has bytes and only then takes a buffer for them. It returns
// no bytes and no error at the end of the stream.
func reader(c net.Conn) (func() (*[32 << 10]byte, int, error), error) {
	sc, ok := c.(syscall.Conn)
	if !ok { // TLS, for one: what is ready there cannot be asked
		return func() (*[32 << 10]byte, int, error) {
			buf := pieces.Get().(*[32 << 10]byte)
			n, err := c.Read(buf[:])
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return buf, n, err
		}, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var buf *[32 << 10]byte
	var n int
	var failure error
	attempt := func(fd uintptr) bool {
		buf = pieces.Get().(*[32 << 10]byte)
		for {
			n, failure = unix.Read(int(fd), buf[:])
			if !errors.Is(failure, unix.EINTR) {
				break
			}
		}
		if errors.Is(failure, unix.EAGAIN) {
			pieces.Put(buf)
			buf = nil
			return false
		}
		return true
	}
	return func() (*[32 << 10]byte, int, error) {
		if err := raw.Read(attempt); err != nil {
			return nil, 0, err
		}
		return buf, max(n, 0), failure
	}, nil
}
