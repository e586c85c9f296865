package transport

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// leastPiece is what the kernel, too, sends at once of a connection that is slow: two packets of 1500 bytes.
	leastPiece = 2 * 1448
	// mostPiece is what the kernel makes of what was written, at most.
	mostPiece = 64 << 10
	// piecesPerSecond make a piece of a faster connection last a millisecond, as the kernel does.
	piecesPerSecond = 1000
)

// pieceOf is how much may be sent at once by a connection that is held back to level, in bytes per second.
func pieceOf(level float64) int64 {
	if size := max(int64(level)/piecesPerSecond, leastPiece); level > 0 && size < mostPiece {
		return size
	}
	return 0
}

// send writes p to the socket, in pieces while the connection is held back. The kernel paces what it sends at once as a
// whole, and where the least round trip is below some milliseconds it joins up to 64 KiB for that, however slow the pace
// (tcp_tso_rtt_log): 5 ms of 100 Mbit/s, and as much again of each other connection. It joins nothing to a record that
// has ended. There is one writer at a time, as net/http has it.
func (c *served) send(p []byte) (int, error) {
	for sent := 0; ; {
		size := int(c.piece.Load())
		if size == 0 {
			n, err := c.TCPConn.Write(p[sent:])
			return sent + n, err
		}
		n, err := sendRecord(c.TCPConn, p[sent:min(sent+size, len(p))])
		if sent += n; err != nil || sent == len(p) {
			return sent, err
		}
	}
}

// sendRecord sends as much of p as there is room for, when there is, as a record that ends there.
func sendRecord(c *net.TCPConn, p []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var refused error
	if err := raw.Write(func(fd uintptr) bool {
		for {
			n, refused = unix.SendmsgN(int(fd), p, nil, nil, unix.MSG_EOR|unix.MSG_NOSIGNAL)
			if refused != unix.EINTR {
				return refused != unix.EAGAIN
			}
		}
	}); err != nil {
		return 0, err
	}
	if refused != nil {
		return 0, &net.OpError{Op: "write", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("sendmsg", refused)}
	}
	return n, nil
}
