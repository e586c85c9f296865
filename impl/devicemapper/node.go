package devicemapper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// nodeDir is where devices have names. udev, where there is one, is told to leave ours alone, so we make them:
// as links, like udev's own, to the nodes that the kernel makes in devtmpfs.
const nodeDir = "/dev/mapper"

// putNode makes the name lead to the device with that number.
func putNode(name string, number uint64) error {
	path, want := filepath.Join(nodeDir, name), fmt.Sprintf("../dm-%d", unix.Minor(number))
	if have, err := os.Readlink(path); err == nil && have == want {
		return nil
	}
	beside := path + ".part"
	if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("name device %s: %w", name, err)
	}
	if err := os.Symlink(want, beside); err != nil {
		return fmt.Errorf("name device %s: %w", name, err)
	}
	if err := os.Rename(beside, path); err != nil {
		return fmt.Errorf("name device %s: %w", name, err)
	}
	return nil
}

func dropNode(name string) error {
	if err := os.Remove(filepath.Join(nodeDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the name of device %s: %w", name, err)
	}
	return nil
}
