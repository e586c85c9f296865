package uffd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

const (
	// handshakeLimit bounds what a VMM says, in bytes. Firecracker needs some 100 per region and has two.
	handshakeLimit = 64 << 10
	// handshakeTimeout bounds how long a VMM that has connected may take to say it. It does so at once.
	handshakeTimeout = 10 * time.Second
	// maxRegions bounds the regions of one VMM; Firecracker has one below 3 GiB and one above.
	maxRegions = 64
)

// region is a part of the VMM's address space that holds guest memory.
type region struct {
	address uint64 // in the VMM
	size    int64
	offset  int64 // in the memory file
}

// wireRegion is a region as Firecracker writes it.
type wireRegion struct {
	Address uint64  `json:"base_host_virt_addr"`
	Size    uint64  `json:"size"`
	Offset  uint64  `json:"offset"`
	Page    *uint64 `json:"page_size"`     // since 1.12, bytes
	PageOld *uint64 `json:"page_size_kib"` // before that, bytes too in spite of its name
}

// vmm is a process that handed its memory over. Both descriptors are ours.
type vmm struct {
	pid     int
	pidfd   int
	conn    *net.UnixConn // nil in tests
	memory  memory
	regions []region
}

func (v *vmm) close() {
	if v.conn != nil {
		_ = v.conn.Close()
	}
	_ = unix.Close(v.pidfd)
	if v.memory.fd >= 0 {
		_ = unix.Close(v.memory.fd)
	}
}

// killTimeout bounds the wait for the end of a VMM that got SIGKILL.
const killTimeout = 30 * time.Second

// kill ends the VMM, which may be gone already, and waits for its end.
func (v *vmm) kill() error {
	if err := unix.PidfdSendSignal(v.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill vmm %d: %w", v.pid, err)
	}
	if !v.ended(killTimeout) {
		return fmt.Errorf("kill vmm %d: it did not end within %s", v.pid, killTimeout)
	}
	return nil
}

// ended waits for the VMM's end, at most for so long.
func (v *vmm) ended(within time.Duration) bool {
	for deadline := time.Now().Add(within); ; {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(v.pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// errNothing says that a peer connected and went without a word: somebody who looked whether we listen.
var errNothing = errors.New("the peer said nothing")

// receive takes over the memory of the VMM at the other end of conn. What is returned with an error, if not
// nil, is a VMM that handed over a userfaultfd and cannot be served.
func receive(ctx context.Context, conn *net.UnixConn, size int64) (*vmm, error) {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	v, err := peer(conn)
	if err != nil {
		return nil, err
	}
	wire, err := v.read(conn)
	if v.memory.fd < 0 {
		v.close()
		return nil, err
	}
	if err == nil {
		v.regions, err = place(wire, size)
	}
	if err == nil {
		err = unix.SetNonblock(v.memory.fd, true)
	}
	return v, err
}

// peer opens a pidfd of the process that connected.
func peer(conn *net.UnixConn) (*vmm, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	v := &vmm{pidfd: -1, memory: memory{-1}}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed != nil {
			return
		}
		v.pid = int(cred.Pid)
		// Since Linux 6.5 the kernel gives the process itself, whose pid cannot be another's by now.
		if v.pidfd, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); failed != nil {
			v.pidfd, failed = unix.PidfdOpen(v.pid, 0)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("handshake: find the process of the peer: %w", err)
	}
	unix.CloseOnExec(v.pidfd)
	return v, nil
}

// read reads until a whole JSON array and one descriptor have come, in whatever pieces, and stores the
// descriptor.
func (v *vmm) read(conn *net.UnixConn) ([]wireRegion, error) {
	buf, oob := make([]byte, handshakeLimit), make([]byte, unix.CmsgSpace(4*4))
	said := 0
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf[said:], oob)
		said += n
		if oobn > 0 {
			if err := v.take(oob[:oobn], flags); err != nil {
				return nil, err
			}
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if errors.Is(err, io.EOF) && said == 0 && v.memory.fd < 0 {
			return nil, errNothing
		}
		if err != nil {
			return nil, fmt.Errorf("handshake: after %d bytes: %w", said, err)
		}
		var wire []wireRegion
		if v.memory.fd >= 0 && json.Unmarshal(buf[:said], &wire) == nil {
			return wire, nil
		}
		if said == len(buf) {
			return nil, fmt.Errorf("handshake: no array of regions in %d bytes", said)
		}
	}
}

// take stores the descriptor of a control message, which must be the only one and a userfaultfd.
func (v *vmm) take(oob []byte, flags int) error {
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		got, parseErr := unix.ParseUnixRights(&messages[i])
		fds, err = append(fds, got...), errors.Join(err, parseErr)
	}
	for _, fd := range fds {
		name, linkErr := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if v.memory.fd < 0 && linkErr == nil && name == "anon_inode:[userfaultfd]" {
			v.memory.fd = fd
			continue
		}
		err = errors.Join(err, fmt.Errorf("a descriptor of %q", name), unix.Close(fd))
	}
	if flags&unix.MSG_CTRUNC != 0 {
		err = errors.Join(err, errors.New("too many descriptors"))
	}
	if err != nil {
		return fmt.Errorf("handshake: want one userfaultfd and nothing else: %w", err)
	}
	return nil
}

// place checks that the regions are the whole memory, each byte once.
func place(wire []wireRegion, size int64) ([]region, error) {
	if len(wire) == 0 || len(wire) > maxRegions {
		return nil, fmt.Errorf("handshake: %d regions, want 1 to %d", len(wire), maxRegions)
	}
	regions := make([]region, 0, len(wire))
	for i, w := range wire {
		page := w.Page
		if page == nil {
			page = w.PageOld
		}
		if page == nil || *page != memfile.PageSize {
			return nil, fmt.Errorf("handshake: region %d has not the page size %d: huge pages are not served", i, memfile.PageSize)
		}
		total := uint64(size)
		if (w.Address|w.Size|w.Offset)%memfile.PageSize != 0 || w.Size == 0 || w.Size > total ||
			w.Offset > total-w.Size || w.Address+w.Size < w.Address {
			return nil, fmt.Errorf("handshake: region %d (%d bytes at %d of the memory file, %#x) is not in pages or outside the %d bytes of the memory", i, w.Size, w.Offset, w.Address, size)
		}
		regions = append(regions, region{w.Address, int64(w.Size), int64(w.Offset)})
	}
	// In the order of the file they must follow on each other, and in that of addresses not overlap.
	slices.SortFunc(regions, func(a, b region) int { return cmp.Compare(a.offset, b.offset) })
	next := int64(0)
	for _, r := range regions {
		if r.offset != next {
			return nil, fmt.Errorf("handshake: the memory at %d is in no region or in two", min(next, r.offset))
		}
		next += r.size
	}
	if next != size {
		return nil, fmt.Errorf("handshake: regions of %d bytes for a memory of %d", next, size)
	}
	slices.SortFunc(regions, func(a, b region) int { return cmp.Compare(a.address, b.address) })
	for i, r := range regions[1:] {
		if before := regions[i]; before.address+uint64(before.size) > r.address {
			return nil, fmt.Errorf("handshake: regions at %#x and %#x overlap", before.address, r.address)
		}
	}
	return regions, nil
}
