package portproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/transport"
)

// pieces are buffers for bodies, and for what moves through tunnels. 32 KiB is what io.Copy takes, beyond which loopback
// gains little; a tunnel holds one only from a read to the end of the write that follows.
var pieces = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// errWrite is why a pump has ended whose destination takes no more.
var errWrite = errors.New("the other end takes no more")

// pump copies src to dst until src ends (nil) or either fails, and tells moving of bytes before and after it has carried them.
// While src is silent it holds no buffer. With splices the kernel carries what is a flood, and moving is not told of it.
func pump(dst, src net.Conn, moving func(n int), splices bool) error {
	read, err := reader(src)
	if err != nil {
		return err
	}
	for full := 0; ; {
		if splices && full >= floodPieces {
			full = 0
			if n, err := splice(dst, src); err != nil || n < spliceBytes {
				return err
			}
		}
		buf, n, err := read()
		if full++; n < len(buf) {
			full = 0
		}
		if n > 0 {
			moving(n)
			if _, failed := dst.Write(buf[:n]); failed != nil {
				err = fmt.Errorf("%w: %w", errWrite, failed)
			}
			moving(0)
		}
		if buf != nil {
			pieces.Put(buf)
		}
		if err != nil || n == 0 {
			return err
		}
	}
}

const (
	// floodPieces is how many pieces in a row are full where there is a flood.
	floodPieces = 8
	// spliceBytes is how much of a flood is spliced until it is asked again if it is one: splicing holds two descriptors.
	spliceBytes = 16 << 20
)

// splice has the kernel move up to spliceBytes from src to dst, without a copy.
func splice(dst, src net.Conn) (int64, error) {
	to, from := plainTCP(dst), plainTCP(src)
	if to == nil || from == nil {
		return spliceBytes, nil
	}
	n, err := to.ReadFrom(&io.LimitedReader{R: from, N: spliceBytes})
	if err != nil && isBroken(to) {
		err = fmt.Errorf("%w: %w", errWrite, err)
	}
	return n, err
}

// plainTCP returns the connection that the kernel knows; nil where it knows none.
func plainTCP(c net.Conn) *net.TCPConn {
	if own, ok := c.(*guestConn); ok {
		return own.TCPConn
	}
	return transport.PlainTCP(c)
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

// waitBroken waits until c's connection is no more, and says that it is; false where that cannot be told, or c has been closed
// here. It is for a connection whose other end has said all it has to say: it may still listen, or may be gone, which the
// kernel finds out by its probes.
func waitBroken(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(hasEnded) == nil
}

// isBroken says whether c's connection is no more, or has been closed here.
func isBroken(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	broken := true
	err = raw.Control(func(fd uintptr) { broken = hasEnded(fd) })
	return err != nil || broken
}

// hasEnded says whether a socket's connection is no more.
func hasEnded(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State == unix.BPF_TCP_CLOSE
}

const (
	// sentPoll is how often waitSent looks, and sentPatience how long it does while nothing moves.
	sentPoll     = 2 * time.Millisecond
	sentPatience = 5 * time.Second
)

// waitSent waits until the other end has all that was written to c, which a reset would take from it.
func waitSent(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	last, since := -1, time.Now()
	for time.Since(since) < sentPatience {
		left := 0
		err := raw.Control(func(fd uintptr) {
			if !hasEnded(fd) {
				left, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			}
		})
		if err != nil || left == 0 {
			return
		}
		if left != last {
			last, since = left, time.Now()
		}
		time.Sleep(sentPoll)
	}
}
