package account

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// MaxPath bounds a path in bytes: Linux's PATH_MAX.
const MaxPath = 4096

// ErrPath says that a path cannot name anything.
var ErrPath = errors.New("invalid path")

// Path makes raw absolute and clean: "~" and "~/x" start at the user's home, a relative path (the empty
// one too) at workdir, or at the home where workdir is empty. Errors wrap ErrPath: a NUL byte, more than
// MaxPath bytes, another user's "~name".
func Path(raw string, u User, workdir string) (string, error) {
	switch {
	case strings.ContainsRune(raw, 0):
		return "", fmt.Errorf("%w: it holds a NUL byte", ErrPath)
	case len(raw) > MaxPath:
		return "", fmt.Errorf("%w: longer than %d bytes", ErrPath, MaxPath)
	case raw == "~" || strings.HasPrefix(raw, "~/"):
		return filepath.Join(u.Home, raw[1:]), nil
	case strings.HasPrefix(raw, "~"):
		return "", fmt.Errorf("%w: %q: only ~ and ~/ are understood", ErrPath, raw)
	case filepath.IsAbs(raw):
		return filepath.Clean(raw), nil
	}
	base := u.Home
	if workdir != "" {
		var err error
		if base, err = Path(workdir, u, ""); err != nil {
			return "", fmt.Errorf("default working directory: %w", err)
		}
	}
	return filepath.Join(base, raw), nil
}

// MakeParents makes dir and its missing parents with mode 0755 and gives those that it made to u.
func MakeParents(dir string, u User) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return &os.PathError{Op: "make directory", Path: dir, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := MakeParents(parent, u); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return fmt.Errorf("make directory: %w", err)
	}
	return u.Own(dir)
}

// Own gives the file at path (the link itself, if it is one) to the user. Where the daemon is not root
// it can give to nobody but itself, which it then need not.
func (u User) Own(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if err := os.Lchown(path, int(u.UID), int(u.GID)); err != nil {
		return fmt.Errorf("give to user %q: %w", u.Name, err)
	}
	return nil
}

// OwnFile is Own for an open file.
func (u User) OwnFile(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if err := f.Chown(int(u.UID), int(u.GID)); err != nil {
		return fmt.Errorf("give to user %q: %w", u.Name, err)
	}
	return nil
}
