package ports

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// scanProc reads listening sockets from /proc/net. A kernel without IPv6 has no tcp6.
func scanProc() ([]listener, error) {
	all, err := readProc("/proc/net/tcp")
	if err != nil {
		return nil, err
	}
	six, err := readProc("/proc/net/tcp6")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return append(all, six...), nil
}

func readProc(path string) ([]listener, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	defer f.Close()
	all, err := parseProc(f)
	if err != nil {
		return nil, fmt.Errorf("list sockets of %s: %w", path, err)
	}
	return all, nil
}

// parseProc reads the format of /proc/net/tcp: a header, then a line per socket, of which the second field is
// the local address, the fourth the state and the tenth the inode. Listening sockets come first.
func parseProc(r io.Reader) ([]listener, error) {
	var all []listener
	lines := bufio.NewScanner(r)
	lines.Scan()
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			return nil, fmt.Errorf("line %.80q has %d fields, want 10 or more", lines.Text(), len(fields))
		}
		if fields[3] != fmt.Sprintf("%02X", tcpListen) {
			break
		}
		at, err := parseProcAddr(fields[1])
		if err != nil {
			return nil, err
		}
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("inode %.40q: %w", fields[9], err)
		}
		all = append(all, listener{at: at, inode: inode})
	}
	return all, lines.Err()
}

// parseProcAddr reads ADDRESS:PORT in hex, the address in words of four bytes in this machine's order.
func parseProcAddr(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address %.80q is not one of the kernel's", s)
	}
	if littleEndian {
		for word := range slices.Chunk(raw, 4) {
			slices.Reverse(word)
		}
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port of %.80q: %w", s, err)
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

var littleEndian = func() bool {
	return binary.NativeEndian.Uint16([]byte{1, 0}) == 1
}()
