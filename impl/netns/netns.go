// Package netns handles named network namespaces as iproute2 keeps them, and runs functions inside.
//
// A named namespace is a file in /run/netns with the namespace bind-mounted on it, so that
// `ip netns exec NAME` and this package see the same ones. This is the only place of the program that
// ties goroutines to operating system threads: see Handle.Do.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where iproute2 keeps its named namespaces (NETNS_RUN_DIR in its sources).
const Dir = "/run/netns"

var (
	// ErrName is returned for a name that cannot be a file of Dir.
	ErrName = errors.New("not a namespace name")
	// ErrNotNamespace is returned by Open for a file that is no network namespace, such as the empty
	// file that a crash between the two halves of Create leaves.
	ErrNotNamespace = errors.New("not a network namespace")
)

// Handle is an open network namespace. It keeps the namespace alive until Close, even when its name
// is deleted. Its methods may be called concurrently, except Close.
type Handle struct{ file *os.File }

// Create makes a network namespace called name and opens it. The error wraps fs.ErrExist when the
// name is taken, and then nothing was changed. The namespace is as the kernel makes it: lo is down.
func Create(name string) (*Handle, error) {
	path, err := pathOf(name)
	if err != nil {
		return nil, err
	}
	if err := Prepare(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return nil, fmt.Errorf("creating namespace %s: %w", name, err)
	}
	f.Close()
	err = onThread(
		func() error { return unix.Unshare(unix.CLONE_NEWNET) },
		func() error { return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "") },
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("creating namespace %s: %w", name, err), Delete(name))
	}
	return Open(name)
}

// Open opens the namespace called name. The error wraps fs.ErrNotExist when there is none, and
// ErrNotNamespace when the file of that name is something else.
func Open(name string) (*Handle, error) {
	path, err := pathOf(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening namespace %s: %w", name, err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("opening namespace %s: %w", name, ErrNotNamespace)
	}
	return &Handle{file: f}, nil
}

// maxMounts bounds what Delete takes off one name; each layer is somebody's mistake.
const maxMounts = 16

// Delete takes the name away; the namespace itself goes with its last process and open handle. It
// also clears what a crash inside Create leaves, and is nil when there is nothing of that name.
func Delete(name string) error {
	path, err := pathOf(name)
	if err != nil {
		return err
	}
	// Another program may have mounted over our mount. EINVAL: a plain file, not a mount point.
	for range maxMounts {
		if err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("deleting namespace %s: %w", name, err)
	}
	return nil
}

// List returns the names in Dir in order, whoever made them and whether or not they can be opened;
// none when Dir does not exist.
func List() ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listing namespaces: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Do runs fn inside the namespace and returns its error. fn runs on a goroutine of its own that is
// locked to its thread, so sockets that it opens, files that it opens under /proc/sys/net and
// processes that it starts belong to the namespace; goroutines that it starts do not. Sockets keep
// belonging to it after fn. A panic or runtime.Goexit of fn continues in the caller.
//
// The thread goes back to the runtime only after it is back in the namespace where it was.
// Otherwise it is destroyed.
func (h *Handle) Do(fn func() error) error {
	err := onThread(func() error { return unix.Setns(int(h.file.Fd()), unix.CLONE_NEWNET) }, fn)
	runtime.KeepAlive(h)
	return err
}

// Fd is the file descriptor of the namespace, valid until Close; netlink takes it where a device is
// made in, or moved to, another namespace.
func (h *Handle) Fd() int { return int(h.file.Fd()) }

// Close releases the handle; the namespace lives on under its name.
func (h *Handle) Close() error { return h.file.Close() }

func pathOf(name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > unix.NAME_MAX {
		return "", fmt.Errorf("%w: %.80q", ErrName, name)
	}
	return filepath.Join(Dir, name), nil
}

// Prepared reports whether Dir is a mount of its own, as Create and iproute2 make it.
func Prepared() (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, Dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking at %s: %w", Dir, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Unprepare takes back what the first Create did to Dir: for who found it unprepared and is done with
// namespaces. It does nothing while any namespace is left there.
func Unprepare() error {
	names, err := List()
	if err != nil || len(names) > 0 {
		return err
	}
	// EINVAL: not a mount point. EBUSY: somebody works in it.
	if err := unix.Unmount(Dir, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", Dir, err)
	}
	return nil
}

// Prepare makes Dir a shared mount, so that a namespace that is mounted or unmounted in one mount
// namespace (a VMM has its own) is so in all; without it a deleted one would live on in those made
// before. The lock is the one that iproute2 takes for the same work. Create does it by itself; calling
// it first keeps the mount table the same from then on.
func Prepare() error {
	if err := prepare(); err != nil {
		return fmt.Errorf("preparing %s: %w", Dir, err)
	}
	return nil
}

func prepare() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking: %w", err)
	}
	// Without MS_REC: what is mounted in a shared mount is shared, and there may be thousands to go through.
	err = unix.Mount("", Dir, "none", unix.MS_SHARED, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// EINVAL: not yet a mount point.
	if err := unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding to itself: %w", err)
	}
	return unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
}
