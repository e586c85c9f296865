package devicemapper

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

var (
	// ErrUnsupported is returned where the kernel, or this process's rights, have no device-mapper.
	ErrUnsupported = errors.New("device-mapper is not available")
	// ErrInvalid is returned for a snapshot that the kernel has given up, since it could not keep a write: the
	// CoW's file system was full, or its disk failed. Every read of it fails, and nothing brings it back.
	ErrInvalid = errors.New("the kernel has given up the snapshot (status Invalid): what was written to it could not be kept")
	// ErrNotAttached is returned for a disk without a device.
	ErrNotAttached = errors.New("disk has no device")
	// ErrForeign is returned where a name of ours is taken by a device that is not.
	ErrForeign = errors.New("device of that name belongs to somebody else")
	// ErrCorrupt is returned for a CoW file that is none.
	ErrCorrupt = errors.New("not a whole CoW file")
)

// Status is what a snapshot says of itself.
type Status struct {
	// Invalid: see ErrInvalid. The counts are then 0.
	Invalid bool
	// Used of Total bytes of the CoW are taken, Metadata of them by the kernel's own records.
	Used, Total, Metadata int64
}

// parseStatus reads "<used>/<total> <metadata>", in sectors, or a word for what is wrong.
func parseStatus(s string) (Status, error) {
	switch s {
	case "Invalid", "Overflow", "Merge failed":
		return Status{Invalid: true}, nil
	}
	share, metadata, ok := strings.Cut(s, " ")
	used, total, ok2 := strings.Cut(share, "/")
	var out Status
	for _, n := range []struct {
		to   *int64
		text string
	}{{&out.Used, used}, {&out.Total, total}, {&out.Metadata, metadata}} {
		v, err := strconv.ParseInt(n.text, 10, 54) // times 512 it still fits
		if err != nil || v < 0 || !ok || !ok2 {
			return Status{}, fmt.Errorf("unknown status of a snapshot: %q", s)
		}
		*n.to = v * sector
	}
	return out, nil
}
