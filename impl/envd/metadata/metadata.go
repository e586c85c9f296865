// Package metadata keeps small facts with a file, in its extended attributes, as E2B's clients write them
// with an upload and read them with an entry.
package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// prefix is where E2B keeps them.
	prefix = "user.e2b."
	// headerPrefix is how a request carries them.
	headerPrefix = "X-Metadata-"
	// maxKey and maxTotal are E2B's bounds in bytes: with its prefix a key then has the kernel's 255, and
	// all keys and values together fit the 4 KiB that ext4 has for them.
	maxKey   = 246
	maxTotal = 4096
)

// ErrInvalid says that metadata is over a bound or not printable ASCII.
var ErrInvalid = errors.New("invalid metadata")

// FromHeader collects the metadata of a request, keys in lower case. Its errors wrap ErrInvalid.
func FromHeader(h http.Header) (map[string]string, error) {
	out := map[string]string{}
	total := 0
	for name, values := range h {
		key, ok := strings.CutPrefix(name, headerPrefix)
		if !ok {
			continue
		}
		key = strings.ToLower(key)
		value := strings.Join(values, ", ")
		total += len(key) + len(value)
		switch {
		case key == "":
			return nil, fmt.Errorf("%w: header %s: a name must follow the last dash", ErrInvalid, headerPrefix)
		case len(key) > maxKey:
			return nil, fmt.Errorf("%w: key of %d bytes, at most %d are allowed", ErrInvalid, len(key), maxKey)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
			return nil, fmt.Errorf("%w: value of %q: only printable ASCII is allowed", ErrInvalid, key)
		case total > maxTotal:
			return nil, fmt.Errorf("%w: more than %d bytes in all", ErrInvalid, maxTotal)
		}
		out[key] = value
	}
	return out, nil
}

// Read returns the metadata of the file at path, nil where there is none or the file system has no
// extended attributes.
func Read(path string) map[string]string {
	names, err := list(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) })
	if err != nil {
		return nil
	}
	var out map[string]string
	for _, n := range names {
		buf := make([]byte, maxTotal)
		size, err := unix.Getxattr(path, n, buf)
		if err != nil {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[strings.TrimPrefix(n, prefix)] = string(buf[:size])
	}
	return out
}

// Replace makes m the whole metadata of the open file fd. A file system without extended attributes is
// an error only where m is not empty.
func Replace(fd int, m map[string]string) error {
	names, err := list(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
	if err != nil && len(m) > 0 {
		return fmt.Errorf("read metadata: %w", err)
	}
	for _, n := range names {
		if _, kept := m[strings.TrimPrefix(n, prefix)]; kept {
			continue
		}
		if err := unix.Fremovexattr(fd, n); err != nil && err != unix.ENODATA {
			return fmt.Errorf("remove metadata %q: %w", n, err)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if err := unix.Fsetxattr(fd, prefix+k, []byte(m[k]), 0); err != nil {
			return fmt.Errorf("set metadata %q: %w", k, err)
		}
	}
	return nil
}

// list returns the names of ours among a file's attributes.
func list(read func([]byte) (int, error)) ([]string, error) {
	size, err := read(nil)
	if err != nil || size == 0 {
		return nil, err
	}
	buf := make([]byte, size)
	if size, err = read(buf); err != nil {
		return nil, err
	}
	var out []string
	for name := range bytes.SplitSeq(buf[:size], []byte{0}) {
		if bytes.HasPrefix(name, []byte(prefix)) {
			out = append(out, string(name))
		}
	}
	return out, nil
}
