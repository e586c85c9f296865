package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// sockDiagByFamily is SOCK_DIAG_BY_FAMILY of linux/sock_diag.h.
	sockDiagByFamily = 20
	// scanTimeout bounds one dump, which takes microseconds per socket.
	scanTimeout = 2 * time.Second
	// tcpListen is TCP_LISTEN of the kernel's tcp_states.h.
	tcpListen = 10
)

// scanner asks the kernel for listening sockets by sock_diag, which yields those alone, whatever the number
// of connections; where the kernel lacks it, by /proc/net. It keeps its socket between scans.
type scanner struct {
	conn   *netlink.Conn
	byProc bool
}

func (s *scanner) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// scan returns all listening TCP sockets.
func (s *scanner) scan() ([]listener, error) {
	if s.byProc {
		return scanProc()
	}
	var all []listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		some, err := s.dump(family)
		if missing(err) {
			s.close()
			s.byProc = true
			return scanProc()
		}
		if err != nil {
			s.close() // what comes next on this socket could be the rest of the failed dump
			return nil, fmt.Errorf("dump listening sockets: %w", err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// missing says whether the kernel has no sock_diag for TCP.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

func (s *scanner) dump(family uint8) ([]listener, error) {
	if s.conn == nil {
		conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	if err := s.conn.SetDeadline(time.Now().Add(scanTimeout)); err != nil {
		return nil, err
	}
	answers, err := s.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   diagRequest(family),
	})
	if err != nil {
		return nil, err
	}
	var all []listener
	for _, m := range answers {
		l, err := parseDiag(m.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// diagRequest is struct inet_diag_req_v2: family, protocol, extensions, padding, states, and a socket's
// identity, which is empty.
func diagRequest(family uint8) []byte {
	const size = 56
	req := make([]byte, size)
	req[0], req[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[4:], 1<<tcpListen)
	return req
}

// parseDiag reads struct inet_diag_msg: family, state, timer, retransmissions, identity (ports and addresses
// in network order, interface, cookie), expiry, queues, uid, inode.
func parseDiag(data []byte) (listener, error) {
	const size, source, inode = 72, 8, 68
	if len(data) < size {
		return listener{}, fmt.Errorf("socket described by %d bytes, want %d", len(data), size)
	}
	var addr netip.Addr
	switch data[0] {
	case unix.AF_INET:
		addr = netip.AddrFrom4([4]byte(data[source : source+4]))
	case unix.AF_INET6:
		addr = netip.AddrFrom16([16]byte(data[source : source+16]))
	default:
		return listener{}, fmt.Errorf("socket of the unknown family %d", data[0])
	}
	return listener{
		at:    netip.AddrPortFrom(addr, binary.BigEndian.Uint16(data[4:])),
		inode: uint64(binary.NativeEndian.Uint32(data[inode:])), //nolint:gosec // the length was checked
	}, nil
}
