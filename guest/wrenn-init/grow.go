package main

import (
	"errors"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The superblock of ext4 lies 1 KiB behind the file system's beginning. Offsets in it, from Linux's
// Documentation/filesystems/ext4/super.rst: blocks (low half, high half), logarithm of the block's size in KiB,
// magic, incompatible features.
const (
	superAt       = 1024
	superSize     = 1024
	superBlocksLo = 0x04
	superBlocksHi = 0x150
	superLogBlock = 0x18
	superMagic    = 0x38
	superIncompat = 0x60

	ext4Magic = 0xEF53
	// incompat64Bit says that the high half of the count of blocks means something.
	incompat64Bit = 0x80
	// maxLogBlock is that of blocks of 64 KiB, the largest that ext4 knows.
	maxLogBlock = 6
)

// resizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64): the count of blocks that the file system is to have.
const resizeFS = 0x40086610

// growRoot makes the mounted file system as large as its device, which a host may have made larger than the
// template. It is a matter of the groups' descriptors: the kernel does it while the file system is in use, in
// milliseconds, and clears the new inode tables later. A file system that fits, or is no ext4, is left alone.
func growRoot(device, mountPoint string) error {
	want, have, err := blocks(device)
	if err != nil || want <= have {
		return err
	}
	dir, err := os.Open(mountPoint)
	if err != nil {
		return err
	}
	defer dir.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resizeFS, uintptr(unsafe.Pointer(&want))) //nolint:gosec // the kernel reads one number
	if errno != 0 {
		return errors.New("grow the file system from " + strconv.FormatUint(have, 10) + " to " + strconv.FormatUint(want, 10) +
			" blocks: " + errno.Error())
	}
	return nil
}

// blocks counts the file system's blocks that the device has room for, and those that there are; 0 and 0 when
// it is no ext4.
func blocks(device string) (room, have uint64, err error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return 0, 0, err
	}
	super := make([]byte, superSize)
	if _, err := f.ReadAt(super, superAt); err != nil {
		return 0, 0, errors.New("read the superblock of " + device + ": " + err.Error())
	}
	log := little32(super[superLogBlock:])
	if uint16(little32(super[superMagic:])) != ext4Magic || log > maxLogBlock {
		return 0, 0, nil
	}
	have = uint64(little32(super[superBlocksLo:]))
	if little32(super[superIncompat:])&incompat64Bit != 0 {
		have |= uint64(little32(super[superBlocksHi:])) << 32
	}
	return uint64(size) >> (10 + log), have, nil
}

// little32 is encoding/binary's, which would bring package reflect along.
func little32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
