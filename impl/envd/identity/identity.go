// Package identity makes a guest that was restored from a snapshot one of its own: what it shares with every
// other machine of that snapshot is its random state, its name and its machine-id.
package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxEntropy bounds what AddEntropy takes, in bytes; the kernel's generator has a state of 32.
const MaxEntropy = 512

// AddEntropy mixes raw into the kernel's random numbers, counts it as unpredictable, and lets the generator
// start from it at once. It needs root.
func AddEntropy(raw []byte) error {
	if len(raw) == 0 || len(raw) > MaxEntropy {
		return fmt.Errorf("add entropy: %d bytes, 1 to %d are taken", len(raw), MaxEntropy)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info of linux/random.h: entropy in bits, size in bytes, the bytes.
	info := make([]byte, 8, 8+len(raw))
	binary.NativeEndian.PutUint32(info, uint32(len(raw)*8))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(raw)))
	info = append(info, raw...)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))) //nolint:gosec // the kernel wants the address
	if errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed the random numbers: %w", errno)
	}
	return nil
}

// rndReseedCRNG is RNDRESEEDCRNG of linux/random.h, _IO('R', 0x07).
const rndReseedCRNG = 0x5207

// CheckHostname says whether the name may be one.
func CheckHostname(name string) error {
	if len(name) > 63 {
		return fmt.Errorf("%d bytes, at most 63 are allowed", len(name))
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%q is none of a-z, 0-9 and '-'", c)
		}
	}
	return nil
}

// SetHostname names the machine, below root, which is "/" in a guest.
func SetHostname(root, name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	hosts := "127.0.0.1\tlocalhost\n127.0.1.1\t" + name + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	return errors.Join(replace(filepath.Join(root, "etc/hostname"), name+"\n", 0o644), replace(filepath.Join(root, "etc/hosts"), hosts, 0o644))
}

// CheckMachineID says whether id is as machine-id(5) asks.
func CheckMachineID(id string) error {
	if len(id) != 32 {
		return fmt.Errorf("%d characters instead of 32", len(id))
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'f') && (c < '0' || c > '9') {
			return fmt.Errorf("%q is no hexadecimal digit", c)
		}
	}
	return nil
}

// SetMachineID writes the machine's id below root.
func SetMachineID(root, id string) error {
	return replace(filepath.Join(root, "etc/machine-id"), id+"\n", 0o444)
}

// overwrite writes a file in its place: of a page in the cache and no block of the disk, which a rename over it
// would begin to write at once (ext4's auto_da_alloc), at 40 ms a file in an emulated guest. The users' processes,
// which could meet half of it, stand still or have not been started.
func overwrite(path, content string, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode != unix.S_IFREG|uint32(mode) || st.Nlink != 1 {
		return fmt.Errorf("%s is not a file of one name and mode %o", path, mode)
	}
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		return err
	}
	if st.Size <= int64(len(content)) {
		return nil
	}
	return f.Truncate(int64(len(content)))
}

// replacing is held by replace: a host that has given up a request repeats it beside that, and two would take each
// other's temporary files away.
var replacing sync.Mutex

// replace gives path a content. A link is replaced, not followed; so is a file that has other names or another mode.
func replace(path, content string, mode fs.FileMode) error {
	replacing.Lock()
	defer replacing.Unlock()
	if overwrite(path, content, mode) == nil {
		return nil
	}
	temporary := path + ".wrenn-new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(temporary, []byte(content), mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
