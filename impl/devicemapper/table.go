package devicemapper

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn/impl/safename"
)

const (
	// sector is device-mapper's unit of addresses, in bytes.
	sector = 512
	// chunkSectors is what a write copies at once: 4 KiB, the block of the guests' file systems, so that a
	// write of a block never has to read the origin, and a CoW grows by what was written and not more.
	chunkSectors = 8
	chunkBytes   = chunkSectors * sector
	// exceptionsPerArea is how many copied chunks one chunk of metadata describes, in 16 bytes each.
	exceptionsPerArea = chunkBytes / 16

	// namePrefix begins the names of our devices, and uuidPrefix their identifiers: a name may be anybody's
	// choice, an identifier is not met by chance.
	namePrefix = "wrenn-"
	uuidPrefix = "WRENN-"
	// originSuffix names the device that makes a template look larger. A colon cannot be in an id.
	originSuffix = ":origin"
)

// target is one line of a device's table.
type target struct {
	start, length uint64 // sectors
	kind, params  string
}

func (t target) String() string {
	return fmt.Sprintf("%d %d %s %s", t.start, t.length, t.kind, t.params)
}

// number writes a device number as tables have it.
func number(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// snapshotTable is a snapshot of the device origin that keeps what is written in the device cow. P: what it
// keeps is found again later. discard_zeroes_cow: what the guest's file system gives up becomes a hole in the
// CoW file again.
func snapshotTable(sectors, origin, cow uint64) []target {
	params := fmt.Sprintf("%s %s P %d 1 discard_zeroes_cow", number(origin), number(cow), chunkSectors)
	return []target{{length: sectors, kind: "snapshot", params: params}}
}

// originTable is the device base followed by zeros up to sectors.
func originTable(sectors, base, baseSectors uint64) []target {
	return []target{
		{length: baseSectors, kind: "linear", params: number(base) + " 0"},
		{start: baseSectors, length: sectors - baseSectors, kind: "zero"},
	}
}

// CowSize is how many bytes a CoW file needs so that every byte of a disk of size bytes can be written: a chunk
// for the header, one for each of the disk's, one of metadata for every 256 of these, and one more, because the
// kernel clears the next chunk of metadata as soon as one is full, even when nothing is left to describe. With
// one chunk less the last write makes the whole snapshot invalid. The file is sparse.
func CowSize(size int64) int64 {
	chunks := (size + chunkBytes - 1) / chunkBytes
	return (1 + chunks + chunks/exceptionsPerArea + 1) * chunkBytes
}

// Name is the name of a sandbox's device: "wrenn-" and its id, at most 70 bytes.
func Name(id string) (string, error) {
	if err := safename.Check("disk", id); err != nil {
		return "", err
	}
	return namePrefix + id, nil
}

// mark shortens a path to what fits into an identifier.
func mark(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:8])
}

// uuid identifies the device of a name: whose it is, where its CoW lies, and the name. So no other owner's
// device, nor that of another disk which happens to have the same name, is ever taken for it.
func uuid(owner, place, name string) string {
	return uuidPrefix + owner + "-" + place + "-" + strings.TrimPrefix(name, namePrefix)
}

// ownID is the id that a device with that name and identifier belongs to, and whether it is this owner's.
func ownID(owner, name, id string) (string, bool) {
	head, ok := strings.CutPrefix(id, uuidPrefix+owner+"-")
	place, rest, ok2 := strings.Cut(head, "-")
	if !ok || !ok2 || len(place) != len(owner) || !strings.HasPrefix(name, namePrefix) || namePrefix+rest != name {
		return "", false
	}
	return strings.TrimSuffix(rest, originSuffix), true
}
