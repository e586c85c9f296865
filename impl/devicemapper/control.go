package devicemapper

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlPath takes device-mapper's commands. Opening it loads the module where it is not built in.
const controlPath = "/dev/mapper/control"

// udevFlags ride in the upper half of a command's event number and tell udev's rules to leave a device alone:
// no links, and above all no search for file systems and volumes on a disk whose content is a guest's, which
// would also hold the device open just when it is to be removed. Values: DM_UDEV_* of lvm2's libdevmapper.h,
// without DM_UDEV_LOW_PRIORITY_FLAG (0x10) and DM_UDEV_PRIMARY_SOURCE_FLAG (0x40).
const udevFlags = (0x01 | 0x02 | 0x04 | 0x08 | 0x20) << 16

const (
	// tableBuffer holds the tables and names of an ordinary answer; it doubles when one does not fit.
	tableBuffer = 16 << 10
	// maxBuffer bounds that: 16 MiB are 100,000 devices of the longest names.
	maxBuffer = 16 << 20
)

// errNoDevice is returned for a device that does not exist.
var errNoDevice = errors.New("no such device-mapper device")

// control speaks to the kernel's device-mapper (linux/dm-ioctl.h).
type control struct {
	f     *os.File
	after func() // nil but in tests, which die here after each command
}

// openControl returns ErrUnsupported where there is no device-mapper, or no right to it.
func openControl() (*control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	c := &control{f: f}
	if _, _, err := c.do(unix.DM_VERSION, command{}); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrUnsupported, err), f.Close())
	}
	return c, nil
}

func (c *control) Close() error { return c.f.Close() }

// command is one request.
type command struct {
	name, uuid string
	flags      uint32
	event      uint32
	targets    []target
}

// device is what the kernel says of a device.
type device struct {
	number    uint64 // as stat's st_rdev
	uuid      string
	openCount int
	active    bool // has a table
	suspended bool
}

func (d device) node() string { return fmt.Sprintf("dm-%d", unix.Minor(d.number)) }

// do performs one ioctl and returns what the kernel answered behind the header.
func (c *control) do(request uint, cmd command) (unix.DmIoctl, []byte, error) {
	payload := encodeTargets(cmd.targets)
	for size := max(tableBuffer, unix.SizeofDmIoctl+len(payload)); ; size *= 2 {
		buf := make([]byte, size)
		header := (*unix.DmIoctl)(unsafe.Pointer(&buf[0])) //nolint:gosec // the kernel's structure, in a buffer of at least its size
		header.Version = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}
		header.Data_size, header.Data_start = uint32(size), unix.SizeofDmIoctl
		header.Target_count, header.Flags, header.Event_nr = uint32(len(cmd.targets)), cmd.flags, cmd.event
		if len(cmd.name) >= unix.DM_NAME_LEN || len(cmd.uuid) >= unix.DM_UUID_LEN {
			return unix.DmIoctl{}, nil, fmt.Errorf("a device's name has at most %d bytes and its uuid %d", unix.DM_NAME_LEN-1, unix.DM_UUID_LEN-1)
		}
		copy(header.Name[:], cmd.name)
		copy(header.Uuid[:], cmd.uuid)
		copy(buf[unix.SizeofDmIoctl:], payload)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.f.Fd(), uintptr(request), uintptr(unsafe.Pointer(header))) //nolint:gosec // as above
		runtime.KeepAlive(c.f)
		if c.after != nil {
			c.after()
		}
		if errno != 0 {
			return unix.DmIoctl{}, nil, errno
		}
		if header.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			end := min(max(int(header.Data_size), unix.SizeofDmIoctl), size)
			return *header, buf[unix.SizeofDmIoctl:end], nil
		}
		if size >= maxBuffer {
			return unix.DmIoctl{}, nil, fmt.Errorf("the kernel's answer has more than %d bytes", maxBuffer)
		}
	}
}

func (c *control) create(name, uuid string) error {
	if _, _, err := c.do(unix.DM_DEV_CREATE, command{name: name, uuid: uuid}); err != nil {
		return fmt.Errorf("create device %s: %w", name, err)
	}
	return nil
}

// load gives the device a table, which counts from the next resume on.
func (c *control) load(name string, readOnly bool, targets []target) error {
	var flags uint32
	if readOnly {
		flags = unix.DM_READONLY_FLAG
	}
	if _, _, err := c.do(unix.DM_TABLE_LOAD, command{name: name, flags: flags, targets: targets}); err != nil {
		return fmt.Errorf("load the table of %s (%s): %w", name, targets, err)
	}
	return nil
}

// suspend waits for what is under way to the device, and holds what comes.
func (c *control) suspend(name string) error {
	if _, _, err := c.do(unix.DM_DEV_SUSPEND, command{name: name, flags: unix.DM_SUSPEND_FLAG}); err != nil {
		return fmt.Errorf("suspend device %s: %w", name, err)
	}
	return nil
}

func (c *control) resume(name string) (device, error) {
	header, _, err := c.do(unix.DM_DEV_SUSPEND, command{name: name, event: udevFlags})
	if err != nil {
		return device{}, fmt.Errorf("resume device %s: %w", name, err)
	}
	return decodeDevice(header), nil
}

// remove returns errNoDevice, or an error that is EBUSY while anything has the device open.
func (c *control) remove(name string) error {
	_, _, err := c.do(unix.DM_DEV_REMOVE, command{name: name, event: udevFlags})
	if errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%w: %s", errNoDevice, name)
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// info returns errNoDevice when there is none of that name.
func (c *control) info(name string) (device, error) {
	header, _, err := c.do(unix.DM_DEV_STATUS, command{name: name})
	if errors.Is(err, unix.ENXIO) {
		return device{}, fmt.Errorf("%w: %s", errNoDevice, name)
	}
	if err != nil {
		return device{}, fmt.Errorf("look at device %s: %w", name, err)
	}
	return decodeDevice(header), nil
}

// table returns the active table as it was loaded, and status what the targets say of themselves.
func (c *control) table(name string) ([]target, error) {
	return c.targets(name, unix.DM_STATUS_TABLE_FLAG|unix.DM_NOFLUSH_FLAG)
}

func (c *control) status(name string) ([]target, error) { return c.targets(name, unix.DM_NOFLUSH_FLAG) }

func (c *control) targets(name string, flags uint32) ([]target, error) {
	header, data, err := c.do(unix.DM_TABLE_STATUS, command{name: name, flags: flags})
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w: %s", errNoDevice, name)
	}
	if err != nil {
		return nil, fmt.Errorf("look at the table of %s: %w", name, err)
	}
	return decodeTargets(data, int(header.Target_count))
}

// names lists all devices of the host.
func (c *control) names() ([]string, error) {
	_, data, err := c.do(unix.DM_LIST_DEVICES, command{})
	if err != nil {
		return nil, fmt.Errorf("list device-mapper devices: %w", err)
	}
	return decodeNames(data)
}

func decodeDevice(h unix.DmIoctl) device {
	return device{
		number: h.Dev, uuid: unix.ByteSliceToString(h.Uuid[:]), openCount: int(h.Open_count),
		active: h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0, suspended: h.Flags&unix.DM_SUSPEND_FLAG != 0,
	}
}

// encodeTargets lays targets out as DM_TABLE_LOAD wants them: struct dm_target_spec, the parameters with a NUL,
// filled up to 8 bytes; "next" counts from the beginning of its own target.
func encodeTargets(targets []target) []byte {
	var out []byte
	for _, t := range targets {
		size := (unix.SizeofDmTargetSpec + len(t.params) + 1 + 7) &^ 7
		spec := make([]byte, size)
		binary.NativeEndian.PutUint64(spec[0:], t.start)
		binary.NativeEndian.PutUint64(spec[8:], t.length)
		binary.NativeEndian.PutUint32(spec[20:], uint32(size))
		copy(spec[24:39], t.kind)
		copy(spec[unix.SizeofDmTargetSpec:], t.params)
		out = append(out, spec...)
	}
	return out
}

var errShortAnswer = errors.New("device-mapper's answer is cut short")

// decodeTargets reads what DM_TABLE_STATUS writes; there "next" counts from the beginning of the first target.
func decodeTargets(data []byte, count int) ([]target, error) {
	var out []target
	at := 0
	for range count {
		if at < 0 || at+unix.SizeofDmTargetSpec > len(data) {
			return nil, errShortAnswer
		}
		spec := data[at:]
		next := int(binary.NativeEndian.Uint32(spec[20:]))
		end := min(next, len(data))
		if end < at+unix.SizeofDmTargetSpec {
			end = len(data)
		}
		out = append(out, target{
			start: binary.NativeEndian.Uint64(spec[0:]), length: binary.NativeEndian.Uint64(spec[8:]),
			kind: unix.ByteSliceToString(spec[24:40]), params: unix.ByteSliceToString(data[at+unix.SizeofDmTargetSpec : end]),
		})
		at = next
	}
	return out, nil
}

// decodeNames reads struct dm_name_list: device number, distance to the next or 0, name.
func decodeNames(data []byte) ([]string, error) {
	const nameAt = 12
	var names []string
	if len(data) < nameAt {
		return nil, nil // no device at all: the kernel counts no bytes, or those of a zero
	}
	for at := 0; ; {
		if at+nameAt > len(data) {
			return nil, errShortAnswer
		}
		number, next := binary.NativeEndian.Uint64(data[at:]), int(binary.NativeEndian.Uint32(data[at+8:]))
		if number == 0 {
			return names, nil // the one entry of an empty list
		}
		name := data[at+nameAt:]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		names = append(names, string(name))
		if next == 0 {
			return names, nil
		}
		at += next
	}
}
