package main

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// rootWait bounds the wait for the root device. Its driver is loaded by then and probes in
	// milliseconds; ten seconds cover an emulated CPU on a host that swaps.
	rootWait = 10 * time.Second
	// rootPoll is how often the device is looked for: short beside a boot, long beside a stat.
	rootPoll = 2 * time.Millisecond
	// newRoot is where the initramfs mounts the root disk; the initramfs carries the folder.
	newRoot = "/newroot"
)

// mount is one line of an fstab.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	options                string
}

const secure = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV

// firstMounts are made in the initramfs and move with the root.
var firstMounts = []mount{
	{"proc", "/proc", "proc", secure, ""},
	{"dev", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
	{"sysfs", "/sys", "sysfs", secure, ""},
}

// guestMounts are made once the root disk is the root. /tmp stays on the disk: a sandbox's memory is
// its scarcest thing.
var guestMounts = []mount{
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
	{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", secure, "nsdelegate"},
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		// In /dev and /run the mount point is often not there yet; elsewhere this finds it present.
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return errors.New("make mount point " + m.target + ": " + err.Error())
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options); err != nil {
			return errors.New("mount " + m.fstype + " on " + m.target + ": " + err.Error())
		}
	}
	return nil
}

// leaveInitramfsOutput is for a machine without a console. Its standard files are then the initramfs'
// stand-in for /dev/null, a plain file in memory that would keep all that envd ever prints.
func leaveInitramfsOutput() error {
	var st unix.Stat_t
	if err := unix.Fstat(2, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.New("open /dev/null: " + err.Error())
	}
	defer unix.Close(null) //nolint:errcheck // its copies stay
	for fd := range 3 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return errors.New("leave the initramfs' output: " + err.Error())
		}
	}
	return nil
}

// loadModules loads the files of dir in the order of their names, which the builder of the initramfs
// derived from their dependencies. A module that does not load is said and passed over: what depends
// on it fails with a better message (no root device, no eth0).
func loadModules(dir string) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		say("wrenn-init: list kernel modules: " + err.Error())
		return
	}
	for _, e := range entries {
		if err := loadModule(dir + "/" + e.Name()); err != nil && !errors.Is(err, unix.EEXIST) {
			say("wrenn-init: load kernel module " + e.Name() + ": " + err.Error())
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// enterRoot mounts the root disk, moves the first mounts into it, frees the initramfs and makes the
// disk the root of this process.
func enterRoot(c config) error {
	if err := waitForDevice(c.root, rootWait); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOATIME)
	if c.readOnly {
		flags |= unix.MS_RDONLY
	}
	// discard: a file deleted in the guest becomes a hole in the sandbox's disk on the host again.
	if err := unix.Mount(c.root, newRoot, "ext4", flags, "discard"); err != nil {
		return errors.New("mount root disk " + c.root + ": " + err.Error())
	}
	if !c.readOnly {
		if err := growRoot(c.root, newRoot); err != nil {
			say("wrenn-init: " + err.Error()) // the guest has less room, and works
		}
	}
	for _, m := range firstMounts {
		if err := unix.Mount(m.target, newRoot+m.target, "", unix.MS_MOVE, ""); err != nil {
			return errors.New("move " + m.target + " to the root disk: " + err.Error())
		}
	}
	if err := freeInitramfs(); err != nil {
		return err
	}
	if err := unix.Chdir(newRoot); err != nil {
		return errors.New("enter the root disk: " + err.Error())
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return errors.New("move the root disk to /: " + err.Error())
	}
	if err := unix.Chroot("."); err != nil {
		return errors.New("change root to the root disk: " + err.Error())
	}
	return unix.Chdir("/")
}

func waitForDevice(path string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("root device " + path + " did not appear in " + limit.String())
		}
		time.Sleep(rootPoll)
	}
}

// freeInitramfs deletes the modules and this program's file, which would otherwise hold their memory
// for the life of the guest. It refuses to delete from anything but a file system in memory.
func freeInitramfs() error {
	memory, err := inMemory("/")
	if err != nil {
		return errors.New("look at the initramfs: " + err.Error())
	}
	if !memory {
		return errors.New("the first root is not an initramfs")
	}
	for _, path := range []string{"/modules", "/init"} {
		if err := os.RemoveAll(path); err != nil {
			say("wrenn-init: free the initramfs: " + err.Error())
		}
	}
	return nil
}

func inMemory(path string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, err
	}
	return fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC, nil
}

// linkDevices makes the links in /dev that devtmpfs leaves to user space; bash's <(...) needs fd.
func linkDevices() {
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"},
		{"fd/0", "/dev/stdin"},
		{"fd/1", "/dev/stdout"},
		{"fd/2", "/dev/stderr"},
	} {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			say("wrenn-init: " + err.Error())
		}
	}
}
