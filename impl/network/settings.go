package network

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// setting is a file below /proc/sys and what is to be written there.
type setting struct {
	path, value string
	// optional passes over a file that the kernel does not have: it was built without IPv6.
	optional bool
}

// fsconfigCreate is FSCONFIG_CMD_CREATE of linux/mount.h.
const fsconfigCreate = 6

// writeSettings writes to the network namespace of the calling thread.
//
// It does so in an instance of procfs of its own. The one at /proc keeps every name that was ever looked up
// in it as long as its namespace lives, all namespaces' under the same hash, and searches them one by one:
// with 1,500 namespaces a write took 1.5 ms instead of 0.1, and was to go on growing.
func writeSettings(settings ...setting) error {
	proc, err := privateProc()
	if err != nil {
		return fmt.Errorf("mounting a procfs for kernel settings: %w", err)
	}
	defer unix.Close(proc) //nolint:errcheck // it was only read
	for _, s := range settings {
		if err := writeAt(proc, strings.TrimPrefix(s.path, "/proc/"), s.value); err != nil && (!s.optional || !errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("writing the kernel setting %s: %w", s.path, err)
		}
	}
	return nil
}

// privateProc returns the root of a procfs that is mounted nowhere and gone when it is closed.
func privateProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs) //nolint:errcheck // the mount stands for itself
	if _, _, errno := unix.Syscall6(unix.SYS_FSCONFIG, uintptr(fs), fsconfigCreate, 0, 0, 0, 0); errno != 0 {
		return -1, errno
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

func writeAt(dir int, path, value string) error {
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(value))
	return errors.Join(err, unix.Close(fd))
}
