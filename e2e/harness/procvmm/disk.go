package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// loopTries bounds the search for a free loop device: between finding one and taking it another process
// may be faster.
const loopTries = 64

// mountDrive mounts the ext4 image of a drive. The loop device frees itself with the last mount, which
// goes with the mount namespace. nobarrier is what Firecracker's default cache type Unsafe means, that
// flushes are ignored; the rest is as in wrenn-init.
func mountDrive(d drive, target string) error {
	device, file, err := attachLoop(d)
	if err != nil {
		return fmt.Errorf("attach the root drive %s: %w", d.PathOnHost, err)
	}
	defer file.Close() // the mount keeps the device
	flags := uintptr(unix.MS_NOATIME | unix.MS_NODEV)
	if d.IsReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(device, target, "ext4", flags, "discard,nobarrier"); err != nil {
		return fmt.Errorf("mount the root drive %s: %w", d.PathOnHost, err)
	}
	return nil
}

// attachLoop returns a loop device of the drive's file; it goes away with the last user.
func attachLoop(d drive) (string, *os.File, error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if d.IsReadOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	backing, err := os.OpenFile(d.PathOnHost, mode, 0)
	if err != nil {
		return "", nil, err
	}
	defer backing.Close() // the device keeps it
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer control.Close()
	for range loopTries {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device := fmt.Sprintf("/dev/loop%d", number)
		loop, err := os.OpenFile(device, mode, 0)
		if err != nil {
			return "", nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: flags}}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return device, loop, nil
		}
		_ = loop.Close() // the error is the one to tell
		if !errors.Is(err, unix.EBUSY) {
			return "", nil, fmt.Errorf("set up %s: %w", device, err)
		}
	}
	return "", nil, fmt.Errorf("no loop device was free %d times", loopTries)
}
