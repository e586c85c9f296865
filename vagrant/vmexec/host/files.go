package host

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// files writes what comes back from the machine to the paths that were asked for, and to no other.
type files struct {
	wanted []string
	pipe   *io.PipeWriter // nil until the first piece
	done   chan error
}

func newFiles(wanted []string) *files { return &files{wanted: wanted} }

func (f *files) write(piece []byte) error {
	if f.pipe == nil {
		r, w := io.Pipe()
		f.pipe, f.done = w, make(chan error, 1)
		go func() {
			err := f.unpack(r)
			r.CloseWithError(err)
			f.done <- err
		}()
	}
	_, err := f.pipe.Write(piece)
	return err
}

// finish waits until all is on disk.
func (f *files) finish() error {
	if f.pipe == nil {
		return nil
	}
	err := errors.Join(f.pipe.Close(), <-f.done)
	f.pipe = nil
	return err
}

// abandon ends the unpacking where it is.
func (f *files) abandon() {
	if f.pipe != nil {
		f.pipe.CloseWithError(errDied)
		<-f.done //nolint:errcheck // why it was given up is told elsewhere
	}
}

func (f *files) unpack(r io.Reader) error {
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			// What follows the archive's end is its padding.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return fmt.Errorf("read the files that came back: %w", err)
		}
		path := filepath.Clean("/" + h.Name)
		if !f.isWanted(path) {
			return fmt.Errorf("a file came back that nobody asked for: %s", path)
		}
		if err := save(path, os.FileMode(h.Mode).Perm(), archive); err != nil {
			return fmt.Errorf("save a file that came back: %w", err)
		}
	}
}

func (f *files) isWanted(path string) bool {
	for _, w := range f.wanted {
		if path == w || strings.HasPrefix(path, w+"/") {
			return true
		}
	}
	return false
}

func save(path string, mode os.FileMode, from io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}
