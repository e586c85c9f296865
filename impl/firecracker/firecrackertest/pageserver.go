package firecrackertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// PageServer serves the page faults of one machine from a memory file, as simply as can be: one page for one
// fault, in order. Pages of zeros are given as such.
type PageServer struct {
	// Copied and Zeroed count the pages that were given.
	Copied, Zeroed atomic.Int64
	// HungUp is closed when the VMM has closed its end.
	HungUp chan struct{}

	memory *os.File
	limit  int64
	stop   chan struct{}
	conn   *net.UnixConn
}

// Region is one region of memory as a VMM tells it in the handshake.
type Region struct {
	Base     uint64 `json:"base_host_virt_addr"`
	Size     uint64 `json:"size"`
	Offset   uint64 `json:"offset"`
	PageSize uint64 `json:"page_size"`
}

// ServePages serves the memory file at path on a socket until the test ends. After limit pages, if that is not
// 0, it dies: it hangs up and serves no more.
func ServePages(t *testing.T, socket, path string, limit int64) *PageServer {
	t.Helper()
	memory, err := os.Open(path)
	require.NoError(t, err)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	s := &PageServer{HungUp: make(chan struct{}), memory: memory, limit: limit, stop: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- s.serve(l) }()
	t.Cleanup(func() {
		close(s.stop)
		assert.NoError(t, l.Close())
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			assert.NoError(t, err, "the page server")
		}
		assert.NoError(t, memory.Close())
	})
	return s
}

func (s *PageServer) serve(l *net.UnixListener) error {
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	s.conn = conn
	regions, uffd, err := Handshake(conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	hungUp := make(chan struct{})
	go func() {
		defer close(hungUp)
		_, _ = conn.Read(make([]byte, 1)) // nothing comes but the end
	}()
	err = s.faults(uffd, regions, hungUp)
	err = errors.Join(err, unix.Close(uffd), conn.Close())
	<-hungUp
	return err
}

// Handshake receives regions and userfaultfd, which may come in pieces.
func Handshake(conn *net.UnixConn) ([]Region, int, error) {
	uffd := -1
	var text []byte
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	if err := conn.SetReadDeadline(time.Now().Add(stepLimit)); err != nil {
		return nil, -1, err
	}
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return nil, -1, err
		}
		if n == 0 {
			return nil, -1, io.ErrUnexpectedEOF
		}
		text = append(text, buf[:n]...)
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return nil, -1, err
		}
		for i := range messages {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil || len(fds) != 1 || uffd >= 0 {
				return nil, -1, fmt.Errorf("the handshake brings descriptors %v: %w", fds, err)
			}
			uffd = fds[0]
		}
		var regions []Region
		if uffd >= 0 && json.Unmarshal(text, &regions) == nil {
			return regions, uffd, conn.SetReadDeadline(time.Time{})
		}
	}
}

// faults answers page faults until the VMM is gone or the server shall end.
func (s *PageServer) faults(uffd int, regions []Region, hungUp <-chan struct{}) error {
	var message [32]byte // struct uffd_msg
	for {
		select {
		case <-hungUp:
			close(s.HungUp)
			return nil
		case <-s.stop:
			return nil
		default:
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(uffd), Events: unix.POLLIN}}, 20)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n <= 0 {
			continue
		}
		if _, err = unix.Read(uffd, message[:]); errors.Is(err, unix.EAGAIN) {
			continue
		} else if err != nil {
			return err
		}
		const pageFault = 0x12
		if message[0] != pageFault {
			continue
		}
		if s.limit > 0 && s.Copied.Load()+s.Zeroed.Load() >= s.limit {
			return s.conn.CloseWrite() // the death of a server, as far as the VMM can see it
		}
		if err := s.give(uffd, regions, *(*uint64)(unsafe.Pointer(&message[16]))); err != nil {
			return err
		}
	}
}

// give gives the page at address.
func (s *PageServer) give(uffd int, regions []Region, address uint64) error {
	address &^= 4095
	for _, r := range regions {
		if address < r.Base || address >= r.Base+r.Size {
			continue
		}
		page := make([]byte, 4096)
		if _, err := s.memory.ReadAt(page, int64(r.Offset+address-r.Base)); err != nil {
			return err
		}
		if isZero(page) {
			s.Zeroed.Add(1)
			zero := struct{ start, length, mode, done uint64 }{address, 4096, 0, 0}
			return uffdIoctl(uffd, 0xc020aa04, unsafe.Pointer(&zero))
		}
		s.Copied.Add(1)
		give := struct{ to, from, length, mode, done uint64 }{address, uint64(uintptr(unsafe.Pointer(&page[0]))), 4096, 0, 0}
		err := uffdIoctl(uffd, 0xc028aa03, unsafe.Pointer(&give))
		runtime.KeepAlive(page) // its address is a mere number to the collector
		return err
	}
	return fmt.Errorf("a fault at %#x, in none of %v", address, regions)
}

func uffdIoctl(uffd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(uffd), request, uintptr(arg))
	switch errno {
	case 0, unix.EEXIST: // somebody was faster
		return nil
	case unix.ESRCH: // the machine is gone
		return nil
	}
	return fmt.Errorf("ioctl %#x of the userfaultfd: %w", request, errno)
}

func isZero(page []byte) bool {
	for _, b := range page {
		if b != 0 {
			return false
		}
	}
	return true
}
