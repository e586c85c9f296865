package uffd

import (
	"encoding/binary"
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linux/userfaultfd.h, as far as a page server needs it; golang.org/x/sys does not have it. The numbers are
// those of _IOWR(0xAA, nr, size) and _IOR on the architectures that Firecracker knows.
const (
	ioctlWake     = 0x8010aa02
	ioctlCopy     = 0xc028aa03
	ioctlZeropage = 0xc020aa04

	eventPagefault = 0x12
	eventRemove    = 0x15

	messageSize = 32
)

type ioctlRange struct{ start, length uint64 }

type copyArg struct {
	dst, src, length, mode uint64
	copied                 int64
}

type zeropageArg struct {
	at     ioctlRange
	mode   uint64
	zeroed int64
}

// message is one struct uffd_msg. For a fault start is its address; for a removal, start and end are the
// range.
type message struct {
	event      byte
	start, end uint64
}

func parseMessage(b []byte) message {
	le := binary.NativeEndian
	m := message{event: b[0]}
	if m.event == eventPagefault {
		m.start = le.Uint64(b[16:]) // behind the flags
	} else {
		m.start, m.end = le.Uint64(b[8:]), le.Uint64(b[16:])
	}
	return m
}

// memory is the userfaultfd of a VMM: what fills its pages.
type memory struct{ fd int }

func (m memory) ioctl(request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.fd), request, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// fill puts b at address and wakes who waits there. It returns how many bytes have been put before an error.
// b must not be in memory that the garbage collector moves or frees: it is mapped.
func (m memory) fill(address uint64, b []byte) (int64, error) {
	src := uintptr(unsafe.Pointer(unsafe.SliceData(b))) //nolint:gosec // G103: the kernel wants an address; b is kept alive below
	arg := copyArg{dst: address, src: uint64(src), length: uint64(len(b))}
	err := m.ioctl(ioctlCopy, unsafe.Pointer(&arg)) //nolint:gosec // G103: an ioctl's argument
	runtime.KeepAlive(b)
	return max(arg.copied, 0), err
}

// zero maps the zero page at length bytes from address on, as fill does.
func (m memory) zero(address uint64, length int64) (int64, error) {
	arg := zeropageArg{at: ioctlRange{address, uint64(length)}}
	err := m.ioctl(ioctlZeropage, unsafe.Pointer(&arg)) //nolint:gosec // G103: an ioctl's argument
	return max(arg.zeroed, 0), err
}

// wake lets the threads go on that wait for length bytes from address on.
func (m memory) wake(address uint64, length int64) error {
	arg := ioctlRange{address, uint64(length)}
	return m.ioctl(ioctlWake, unsafe.Pointer(&arg)) //nolint:gosec // G103: an ioctl's argument
}

// events reads what has happened into buf and returns it; none where nothing has. The descriptor does not
// block.
func (m memory) events(buf []byte) ([]message, error) {
	n, err := unix.Read(m.fd, buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []message
	for b := buf[:n]; len(b) >= messageSize; b = b[messageSize:] {
		all = append(all, parseMessage(b))
	}
	return all, nil
}
