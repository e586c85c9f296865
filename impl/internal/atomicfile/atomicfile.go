// Package atomicfile replaces a file so that a crash at any moment leaves the old content or the new,
// never a mix and never nothing.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Write puts data at path with permissions perm: written beside, synced, renamed over, and the
// directory synced. When it returns nil, the new content survives a crash of the host.
func Write(path string, data []byte, perm os.FileMode) error { return write(path, data, perm, true) }

// Put is Write without waiting for the disk: when it returns nil, the new content survives the end of this process, and
// after Sync a crash of the host. One before that may also leave the file empty or torn.
func Put(path string, data []byte, perm os.FileMode) error { return write(path, data, perm, false) }

// Sync makes what was Put at path durable.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return errors.Join(f.Sync(), f.Close(), SyncDir(filepath.Dir(path)))
}

func write(path string, data []byte, perm os.FileMode, durable bool) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, unfinished(path)+"*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), tmp.Close(), os.Remove(tmp.Name()))
		}
	}()
	if _, err = tmp.Write(data); err != nil {
		return err
	}
	if err = tmp.Chmod(perm); err != nil {
		return err
	}
	if durable {
		if err = tmp.Sync(); err != nil {
			return err
		}
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil || !durable {
		return err
	}
	return SyncDir(dir)
}

// unfinished is how the names of the files begin that Write makes beside path.
func unfinished(path string) string { return "." + filepath.Base(path) + ".tmp-" }

// RemoveUnfinished removes what killed Writes have left beside path. It is for who knows that nobody else
// writes path now.
func RemoveUnfinished(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for unfinished writes of %s: %w", path, err)
	}
	var errs []error
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), unfinished(path)) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
