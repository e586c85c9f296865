package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DirSize is how many bytes the files below dir occupy: allocated blocks, not apparent sizes, which mean
// nothing for sparse files. A file with several names counts once. What blocks are shared with files elsewhere
// (reflinks) cannot be told and counts too. What vanishes under way does not count.
func DirSize(dir string) (int64, error) {
	type file struct{ dev, ino uint64 }
	seen := make(map[file]bool)
	var total int64
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if errors.Is(err, unix.ENOENT) && path != dir {
				return nil
			}
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if f := (file{st.Dev, st.Ino}); !seen[f] {
			seen[f] = true
			total += st.Blocks * 512 // the unit of st_blocks, whatever the file system's
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", dir, err)
	}
	return total, nil
}

// Usage returns how many bytes the disk in dir occupies on the host; 0 when there is none.
func Usage(dir string) (int64, error) {
	var total int64
	for _, name := range []string{DiskName, CowName, RecordName} {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, name), &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("size of the disk: %w", &os.PathError{Op: "lstat", Path: filepath.Join(dir, name), Err: err})
		}
		total += st.Blocks * 512
	}
	return total, nil
}
