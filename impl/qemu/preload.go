package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A load by Uffd, as far as the page server can tell, is Firecracker's: it gets the layout of the memory and
// a userfaultfd over a connection that stays open for the machine's life, and page faults come. They come all
// at reader, though: QEMU cannot be driven by a userfaultfd of ours, so every page is touched here, in a memfd
// that QEMU then maps privately.

// uffdRegion is one region of memory as Firecracker 1.16 tells it. page_size_kib holds bytes, too.
type uffdRegion struct {
	Base        uint64 `json:"base_host_virt_addr"`
	Size        uint64 `json:"size"`
	Offset      uint64 `json:"offset"`
	PageSize    uint64 `json:"page_size"`
	PageSizeKiB uint64 `json:"page_size_kib"`
}

// preloadTimeout bounds the time in which a page server has to give all of a memory: 32 MiB/s, where one that
// gave page by page on two busy cores was seen to reach 87, and 20 s for it to come up.
func preloadTimeout(size int64) time.Duration {
	return 20*time.Second + time.Duration(size>>20)*time.Second/32
}

// preload takes the memory from the page server at socket, and returns it with the connection. A server that
// hangs up or is not done within limit is an error.
func preload(socket string, size int64, limit time.Duration) (m *memory, server io.Closer, err error) {
	if m, err = newMemory(size); err != nil {
		return nil, nil, fmt.Errorf("Failed to restore guest memory: %w", err) //nolint:staticcheck // Firecracker's words
	}
	defer func() {
		if err != nil {
			m.close()
			m = nil
		}
	}()
	pages, err := unix.Mmap(int(m.file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return m, nil, fmt.Errorf("Failed to restore guest memory: %w", err) //nolint:staticcheck // Firecracker's words
	}
	defer func() { err = errors.Join(err, unix.Munmap(pages)) }()
	uffd, err := registerFaults(pages)
	if err != nil {
		return m, nil, err
	}
	defer unix.Close(uffd) //nolint:errcheck // nothing is written to it
	conn, err := handshake(socket, pages, uffd)
	if err != nil {
		return m, nil, err
	}
	if err := touch(pages, uffd, conn, limit); err != nil {
		return m, nil, errors.Join(err, conn.Close())
	}
	m.private = true
	return m, conn, nil
}

// The userfaultfd interface of linux/userfaultfd.h.
const (
	uffdAPI           = 0xaa
	uffdEventRemove   = 1 << 3
	uffdRegisterMiss  = 1
	ioctlUffdAPI      = 0xc018aa3f
	ioctlUffdRegister = 0xc020aa00
	ioctlUffdUnreg    = 0x8010aa01
	ioctlUffdNew      = 0xaa00 // of /dev/userfaultfd
)

type uffdAPIArg struct{ api, features, _ uint64 } // the last is an answer
type uffdRange struct{ start, length uint64 }
type uffdRegisterArg struct {
	uffdRange
	mode, _ uint64 // the last is an answer
}

// registerFaults makes a userfaultfd, as Firecracker's is, that tells of missing pages. It is a bare number,
// since an os.File would make it blocking, for the page server too.
func registerFaults(pages []byte) (int, error) {
	fd, err := newUserfaultfd()
	if err != nil {
		return -1, fmt.Errorf("Failed to UFFD object: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	api := uffdAPIArg{api: uffdAPI, features: uffdEventRemove}
	if err := ioctl(fd, ioctlUffdAPI, &api); err != nil {
		_ = unix.Close(fd)                                              // it does nothing yet
		return -1, fmt.Errorf("Failed to UFFD object: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	register := uffdRegisterArg{uffdRange: rangeOf(pages), mode: uffdRegisterMiss}
	if err := ioctl(fd, ioctlUffdRegister, &register); err != nil {
		_ = unix.Close(fd)                                                                                            // it does nothing yet
		return -1, fmt.Errorf("Failed to register memory address range with the userfaultfd object: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	return fd, nil
}

// newUserfaultfd asks the system call first and, where it is not permitted, the device.
func newUserfaultfd() (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
	if errno == 0 {
		return int(fd), nil
	}
	device, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err != nil {
		return -1, errno
	}
	defer device.Close()
	fd, _, errno = unix.Syscall(unix.SYS_IOCTL, device.Fd(), ioctlUffdNew, flags)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func rangeOf(pages []byte) uffdRange {
	return uffdRange{uint64(uintptr(unsafe.Pointer(unsafe.SliceData(pages)))), uint64(len(pages))} //nolint:gosec // a mapping, which does not move
}

func ioctl[T any](fd int, request uintptr, arg *T) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg))) //nolint:gosec // an argument of the kernel's layout
	if errno != 0 {
		return errno
	}
	return nil
}

// handshake sends layout and userfaultfd in one message, and keeps the connection.
func handshake(socket string, pages []byte, uffd int) (*net.UnixConn, error) {
	at := rangeOf(pages)
	layout, err := json.Marshal([]uffdRegion{{Base: at.start, Size: at.length, PageSize: pageSize, PageSizeKiB: pageSize}})
	if err != nil {
		return nil, fmt.Errorf("describe the memory: %w", err)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("Failed to connect to UDS Unix stream: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	if _, _, err := conn.WriteMsgUnix(layout, unix.UnixRights(uffd), nil); err != nil {
		return nil, errors.Join(fmt.Errorf("Failed to sends file descriptor: %s", osText(err)), conn.Close()) //nolint:staticcheck // Firecracker's words
	}
	return conn, nil
}

var errServerGone = errors.New("the page server has hung up")

// touch faults all pages in. Whoever waits for a page waits in the kernel and cannot be interrupted, so the
// end of the server or of the time makes the kernel let go of the range: the waiting call then returns, with
// pages that are worth nothing.
func touch(pages []byte, uffd int, conn *net.UnixConn, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	failed := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		err := awaitHangUp(conn)
		if err != nil {
			unregister := rangeOf(pages)
			_ = ioctl(uffd, ioctlUffdUnreg, &unregister) // fails only where nothing waits
		}
		failed <- err
	})
	const step = 2 << 20
	var err error
	for at := 0; at < len(pages) && err == nil && len(failed) == 0; at += step {
		err = populate(pages[at:min(at+step, len(pages))])
	}
	// The reader sees a deadline in the past, and takes the one that it set itself for its own.
	done := errors.Join(err, conn.SetReadDeadline(time.Unix(1, 0)))
	reader.Wait()
	serverErr := <-failed
	ended := errors.Is(serverErr, os.ErrDeadlineExceeded) && time.Now().Before(deadline)
	if serverErr != nil && !ended {
		return fmt.Errorf("take the memory from the page server: %w", serverErr)
	}
	return errors.Join(done, conn.SetReadDeadline(time.Time{}))
}

// awaitHangUp reads, since nothing is ever sent to Firecracker either: what comes is the end.
func awaitHangUp(conn *net.UnixConn) error {
	var nothing [16]byte
	for {
		if _, err := conn.Read(nothing[:]); errors.Is(err, io.EOF) {
			return errServerGone
		} else if err != nil {
			return err
		}
	}
}

// populate touches pages for reading, in the kernel: a thread that waits there does not hold up Go's others.
func populate(pages []byte) error {
	for {
		err := unix.Madvise(pages, unix.MADV_POPULATE_READ)
		if err != unix.EINTR && err != unix.EAGAIN {
			return os.NewSyscallError("touch the memory", err)
		}
	}
}
