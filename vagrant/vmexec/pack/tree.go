// Package pack gathers what a test program needs in its virtual machine, and writes it as an initramfs:
// files of this machine at their own paths, programs with their shared libraries, kernel modules.
package pack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
)

// epoch is every file's date: the zero of Unix time would be left out of the header by the library.
var epoch = time.Unix(1, 0)

// entry is one file: a folder, a link, bytes, or a file of this machine, which is read when it is written.
type entry struct {
	mode   cpio.FileMode
	link   string
	data   []byte
	source string
}

// Tree is a file system in the making. The zero value is not usable; call NewTree.
type Tree struct {
	entries map[string]entry // by absolute, clean path
	objects map[string]bool  // programs and libraries that were looked into
}

// NewTree is a file system with nothing in it but /dev/null, /tmp and the root's home.
func NewTree() *Tree {
	t := &Tree{entries: map[string]entry{}, objects: map[string]bool{}}
	// The kernel starts init without a file where there is no console yet, and the Go runtime then opens
	// /dev/null before anything of ours runs. A plain file will do until devtmpfs covers it.
	t.folders("/dev")
	t.AddData("/dev/null", 0o666, nil)
	t.entries["/tmp"] = entry{mode: cpio.TypeDir | 0o777 | cpio.ModeSticky}
	t.folders("/root")
	return t
}

// folders adds a folder and those above it, unless they are there.
func (t *Tree) folders(path string) {
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		if _, found := t.entries[path]; !found {
			t.entries[path] = entry{mode: cpio.TypeDir | 0o755}
		}
	}
}

// AddData adds a file with these bytes.
func (t *Tree) AddData(path string, mode fs.FileMode, data []byte) {
	t.folders(filepath.Dir(path))
	t.entries[path] = entry{mode: cpio.TypeReg | cpio.FileMode(mode.Perm()), data: data}
}

// AddFolder adds an empty folder.
func (t *Tree) AddFolder(path string) { t.folders(path) }

// AddLink adds a symbolic link.
func (t *Tree) AddLink(path, target string) {
	t.folders(filepath.Dir(path))
	t.entries[path] = entry{mode: cpio.TypeSymlink | 0o777, link: target}
}

// Add adds a file of this machine under its own path, a folder with all below it. Symbolic links on the
// way, and those that are found inside, are kept, and what they point to is added too. A link inside a
// folder may point nowhere.
func (t *Tree) Add(path string) error {
	actual, err := t.resolve(path)
	if err != nil {
		return err
	}
	info, err := os.Lstat(actual)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return t.addFile(actual, info)
	}
	t.folders(actual)
	children, err := os.ReadDir(actual)
	if err != nil {
		return err
	}
	for _, c := range children {
		err := t.Add(filepath.Join(actual, c.Name()))
		if err != nil && (c.Type() != fs.ModeSymlink || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

func (t *Tree) addFile(actual string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return nil // sockets and the like mean nothing elsewhere
	}
	t.folders(filepath.Dir(actual))
	t.entries[actual] = entry{mode: cpio.TypeReg | cpio.FileMode(info.Mode().Perm()), source: actual}
	return nil
}

// maxLinks is the kernel's bound on links in one path.
const maxLinks = 40

// resolve returns the path that a path really is, and adds each symbolic link met on the way.
func (t *Tree) resolve(path string) (string, error) {
	rest := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	actual := "/"
	for links := 0; len(rest) > 0; {
		next := filepath.Join(actual, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			actual = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("follow %s: more than %d symbolic links", path, maxLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		t.folders(actual)
		t.entries[next] = entry{mode: cpio.TypeSymlink | 0o777, link: target}
		if filepath.IsAbs(target) {
			actual = "/"
		}
		if clean := strings.Trim(filepath.Clean(target), "/"); clean != "" {
			rest = append(strings.Split(clean, "/"), rest...)
		}
	}
	return actual, nil
}

// Write writes the initramfs (cpio, "newc").
func (t *Tree) Write(w io.Writer) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	archive := cpio.NewWriter(buffered)
	// Sorted, a folder comes before what is in it.
	for _, path := range slices.Sorted(maps.Keys(t.entries)) {
		if err := t.entries[path].write(archive, strings.TrimPrefix(path, "/")); err != nil {
			return fmt.Errorf("pack %s: %w", path, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("finish the initramfs: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	return nil
}

func (e entry) write(archive *cpio.Writer, name string) error {
	h := &cpio.Header{Name: name, Mode: e.mode, Links: 1, ModTime: epoch}
	if e.source != "" {
		return e.copy(archive, h)
	}
	data := e.data
	if e.link != "" {
		data = []byte(e.link)
	}
	h.Size = int64(len(data))
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	_, err := archive.Write(data)
	return err
}

func (e entry) copy(archive *cpio.Writer, h *cpio.Header) error {
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h.Size = info.Size()
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(archive, io.LimitReader(f, h.Size))
	return err
}
