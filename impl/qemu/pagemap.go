package qemu

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pageSize is the guest's and, on the processors that this runs on, the host's.
const pageSize = 4096

// mapping is one line of /proc/PID/maps.
type mapping struct {
	start, end uintptr
	offset     int64  // of start in the file
	file       string // device and inode, as the kernel names them there
}

// parseMaps reads /proc/PID/maps. A line that is none is an error.
func parseMaps(r io.Reader) ([]mapping, error) {
	var all []mapping
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		m, err := parseMapping(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("mapping %q: %w", lines.Text(), err)
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// parseMapping reads "start-end perms offset dev inode path".
func parseMapping(line string) (mapping, error) {
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return mapping{}, fmt.Errorf("has %d fields", len(fields))
	}
	from, to, _ := strings.Cut(fields[0], "-")
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return mapping{}, err
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil {
		return mapping{}, err
	}
	offset, err := strconv.ParseInt(fields[2], 16, 64)
	if err != nil {
		return mapping{}, err
	}
	if end <= start || start%pageSize != 0 || end%pageSize != 0 || offset%pageSize != 0 {
		return mapping{}, fmt.Errorf("is not of whole pages")
	}
	return mapping{start: uintptr(start), end: uintptr(end), offset: offset, file: fields[3] + " " + fields[4]}, nil
}

// nameInMaps is how /proc/PID/maps names a file. Some file systems show another device number there than
// to stat, so the file is mapped here and looked up.
func nameInMaps(f *os.File) (string, error) {
	page, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return "", fmt.Errorf("map %s: %w", f.Name(), err)
	}
	defer unix.Munmap(page) //nolint:errcheck // it was mapped above
	all, err := mapsOf(os.Getpid())
	if err != nil {
		return "", err
	}
	at := uintptr(unsafe.Pointer(unsafe.SliceData(page))) //nolint:gosec // an address to look up, not to use
	for _, m := range all {
		if m.start <= at && at < m.end {
			return m.file, nil
		}
	}
	return "", fmt.Errorf("the mapping of %s is not found", f.Name())
}

func mapsOf(pid int) ([]mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMaps(f)
}

// mappingsOf finds where a process has mapped the first size bytes of a file, in the order of the file: one
// mapping, unless something has split it. They cover all of it and nothing twice.
func mappingsOf(pid int, file string, size int64) ([]mapping, error) {
	all, err := mapsOf(pid)
	if err != nil {
		return nil, err
	}
	return cover(all, file, size)
}

func cover(all []mapping, file string, size int64) ([]mapping, error) {
	var found []mapping
	next := int64(0)
	for next < size {
		before := next
		for _, m := range all {
			if m.file == file && m.offset == next {
				m.end = m.start + uintptr(min(int64(m.end-m.start), size-next))
				found = append(found, m)
				next += int64(m.end - m.start)
				break
			}
		}
		if next == before {
			return nil, fmt.Errorf("the guest's memory is not mapped from byte %d on", next)
		}
	}
	return found, nil
}

// changed tells by its entry in /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst) whether a page
// of a private file mapping was written: it is there, in memory or swapped out, and not the file's.
func changed(entry uint64) bool {
	const present, swapped, filePage = 1 << 63, 1 << 62, 1 << 61
	return entry&(present|swapped) != 0 && entry&filePage == 0
}

// run is a run of pages, in bytes from the start of what was looked at.
type run struct{ start, end int }

// changedRuns reads entries of a pagemap and appends the runs of changed pages.
func changedRuns(runs []run, entries []byte) []run {
	open := false
	for at := 0; at+8 <= len(entries); at += 8 {
		was := open
		open = changed(binary.NativeEndian.Uint64(entries[at:]))
		page := at / 8 * pageSize
		switch {
		case open && was:
			runs[len(runs)-1].end = page + pageSize
		case open:
			runs = append(runs, run{page, page + pageSize})
		}
	}
	return runs
}

var zeroPage [pageSize]byte

// zeroRuns calls data for runs of pages of buf that hold something and zero for those that hold nothing,
// in their order. The last page may be short.
func zeroRuns(buf []byte, data, zero func(start, end int) error) error {
	isZero := func(at int) bool {
		page := buf[at:min(at+pageSize, len(buf))]
		return bytes.Equal(page, zeroPage[:len(page)])
	}
	for start := 0; start < len(buf); {
		kind := isZero(start)
		end := min(start+pageSize, len(buf))
		for end < len(buf) && isZero(end) == kind {
			end = min(end+pageSize, len(buf))
		}
		call := data
		if kind {
			call = zero
		}
		if err := call(start, end); err != nil {
			return err
		}
		start = end
	}
	return nil
}
