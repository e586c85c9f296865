package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// loopTag begins the file name that our loop devices carry in the kernel (lo_file_name, 63 bytes), with the
// owner behind it. Others put the path of the file there.
const loopTag = "wrenn:"

// loop is a loop device that this process holds open. All of ours clear themselves at the last close
// (LO_FLAGS_AUTOCLEAR), and a device-mapper table that uses one has it open: so a loop device lives as long as
// it is used, and a process that is killed leaves none.
type loop struct {
	f      *os.File
	number uint64 // as stat's st_rdev
}

func (l *loop) Close() error { return l.f.Close() }

// loops attaches loop devices. Of those that ask the kernel for a free one at a time all get the same.
type loops struct {
	owner string
	mu    sync.Mutex
}

func (l *loops) tag() string { return loopTag + l.owner }

// attach makes file a loop device, read-only if it was opened so.
func (l *loops) attach(ctx context.Context, file *os.File, readOnly bool) (*loop, error) {
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	flags := os.O_RDWR
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		flags = os.O_RDONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], l.tag())
	l.mu.Lock()
	defer l.mu.Unlock()
	var out *loop
	err := retryBusy(ctx, func() error {
		f, err := openFreeLoop(flags)
		if err != nil {
			return err
		}
		if err := unix.IoctlLoopConfigure(int(f.Fd()), &config); err != nil {
			return errors.Join(err, f.Close())
		}
		out = &loop{f: f}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return errors.Join(err, f.Close())
		}
		out.number = st.Rdev
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("attach %s to a loop device: %w", file.Name(), err)
	}
	return out, nil
}

func openFreeLoop(flags int) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a free loop device: %w", err)
	}
	return os.OpenFile(fmt.Sprintf("/dev/loop%d", n), flags, 0)
}

// fileID tells files apart, whatever their names.
type fileID struct{ dev, ino uint64 }

func idOf(f *os.File) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// backing says which file a loop device is over, and whether it is one of ours; an error when it is free.
func (l *loops) backing(f *os.File) (id fileID, readOnly, ours bool, err error) {
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return fileID{}, false, false, err
	}
	ours = unix.ByteSliceToString(info.File_name[:]) == l.tag() && info.Offset == 0 && info.Sizelimit == 0
	return fileID{info.Device, info.Inode}, info.Flags&unix.LO_FLAGS_READ_ONLY != 0, ours, nil
}

// find returns our loop device over the file, or nil. It opens what clears itself and begins at the file's
// start alone, so the devices of others are rarely even looked at.
func (l *loops) find(file fileID, readOnly bool) (*loop, error) {
	paths, err := boundLoops()
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			continue // it went away
		}
		id, ro, ours, err := l.backing(f)
		var st unix.Stat_t
		if err == nil && ours && id == file && ro == readOnly && unix.Fstat(int(f.Fd()), &st) == nil {
			return &loop{f: f, number: st.Rdev}, nil
		}
		_ = f.Close()
	}
	return nil, nil //nolint:nilnil // there is none
}

// boundLoops lists the loop devices that are over a file from its start on and clear themselves.
func boundLoops() ([]string, error) {
	bound, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, b := range bound {
		dir := filepath.Dir(b)
		if sysfs(dir, "autoclear") == "1" && sysfs(dir, "offset") == "0" {
			paths = append(paths, filepath.Join("/dev", filepath.Base(filepath.Dir(dir))))
		}
	}
	return paths, nil
}

// sysfs reads an attribute; empty when it is gone.
func sysfs(dir, name string) string {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
