// Package memfile keeps the memory of a paused machine: layers of guest memory, each a raw sparse file as
// the VMM wrote it beside a header that says what of it is data and what its bytes must sum up to.
//
// The first layer of a chain is a base, every other one a diff upon the layer before it. In a base a hole
// means zero. In a diff a hole means "unchanged since the parent" and data means "changed", even where it
// is all zero: a page that the guest has zeroed is changed. Which of the two a place is, the header alone
// decides, so a copy that filled the holes of a data file does no harm.
//
// A layer is named by an ID that stands for the memory's content at one moment. A merged base has the ID
// and the generation of the last layer that went into it, because it stands for the same content: a diff
// fits upon either.
//
// What is written here is synced as a file before a function returns. Names are made durable only where a
// function says so; syncing the directory is otherwise the caller's, who has more to put into it.
package memfile

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"wrenn/impl/internal/atomicfile"
)

const (
	// PageSize is the unit of every offset and length, in bytes: the page of the guest and of the host.
	PageSize = 4096
	// PieceSize is how many bytes share one checksum, in bytes: a piece is the part of an extent between two
	// multiples of it. Larger pieces would save four bytes of header each, but a page that is served lazily
	// costs the reading of its whole piece the first time.
	PieceSize = 128 << 10
	// MaxGenerations is how many diffs may lie upon a base before a chain is to be merged into a new one: each
	// adds its own file to what a restore opens and its overlaid pages to what a paused machine occupies.
	MaxGenerations = 8
	// MaxMemory bounds the memory of a machine, in bytes. At 1 TiB a page's number still fits 32 bits with
	// room, and hosts of this size are not what Wrenn is for.
	MaxMemory = 1 << 40
	// HeaderSuffix makes the name of a header from that of its data file.
	HeaderSuffix = ".hdr"
)

// ErrCorrupt is what every refusal of a layer wraps: torn, truncated, changed or foreign files, and layers
// that do not belong upon each other. The error is a *CorruptError with file and offset.
var ErrCorrupt = errors.New("memory layer refused")

// CorruptError says which file was refused, where, and why.
type CorruptError struct {
	File   string
	Offset int64 // in bytes from the start of File
	Reason string
}

// Error names the file and the offset.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: offset %d: %s", e.File, e.Offset, e.Reason)
}

// Unwrap is ErrCorrupt.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// ID names the content of a machine's memory at one moment. The zero ID names nothing.
type ID [16]byte

// NewID returns a random ID.
func NewID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// String is the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	var id ID
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("parse layer id %.40q: want %d hexadecimal digits", s, 2*len(id))
	}
	return ID(raw), nil
}

// Extent is a part of a data file that holds data: page aligned, both in bytes.
type Extent struct{ Offset, Length int64 }

// End is the offset behind the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Header describes the data file of one layer.
type Header struct {
	// MemorySize is the guest's memory and the length of the data file, in bytes.
	MemorySize int64
	// Generation counts the layers since the machine booted. A diff's is its parent's plus one.
	Generation uint64
	// ID names this layer, Parent the one it lies upon; zero in a base.
	ID, Parent ID
	// Extents are the data, sorted, apart from each other by at least one page.
	Extents []Extent
	// Checksums are the CRC32C of all pieces in order. Extents are cut into pieces at multiples of PieceSize.
	Checksums []uint32
}

// IsBase tells whether the layer lies upon nothing.
func (h *Header) IsBase() bool { return h.Parent == ID{} }

// DataSize is how many bytes of the layer are data.
func (h *Header) DataSize() int64 {
	var n int64
	for _, e := range h.Extents {
		n += e.Length
	}
	return n
}

// check finds what no header may say. Sums of the data are not its concern.
func (h *Header) check() error {
	switch {
	case h.MemorySize <= 0 || h.MemorySize > MaxMemory || h.MemorySize%PageSize != 0:
		return fmt.Errorf("memory size %d is not a number of pages up to %d bytes", h.MemorySize, int64(MaxMemory))
	case h.ID == ID{}:
		return errors.New("the layer has no id")
	case h.ID == h.Parent:
		return errors.New("the layer is its own parent")
	case !h.IsBase() && h.Generation == 0:
		return errors.New("a diff of generation 0")
	}
	end := int64(-1)
	for i, e := range h.Extents {
		if e.Offset%PageSize != 0 || e.Length%PageSize != 0 || e.Length <= 0 ||
			e.Offset <= end || e.Offset >= h.MemorySize || e.Length > h.MemorySize-e.Offset {
			return fmt.Errorf("extent %d (%d bytes at %d) is not in order, in pages or in the memory", i, e.Length, e.Offset)
		}
		end = e.End()
	}
	if n := newPieces(h.Extents).count(); n != len(h.Checksums) {
		return fmt.Errorf("%d checksums for %d pieces", len(h.Checksums), n)
	}
	return nil
}

// The header file, little endian: this fixed part, the extents (first page and number of pages, 32 bits
// each), the checksums (32 bits each), and the CRC32C of all that.
const (
	magic      = "WRENNMEM"
	version    = 1
	fixedSize  = 8 + 4 + 4 + 4 + 4 + 8 + 8 + 16 + 16 + 8 + 8
	extentSize = 8
	sumSize    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Encode returns the header file's bytes.
func (h *Header) Encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("encode memory header: %w", err)
	}
	le := binary.LittleEndian
	b := make([]byte, 0, fixedSize+extentSize*len(h.Extents)+sumSize*len(h.Checksums)+sumSize)
	b = append(b, magic...)
	b = le.AppendUint32(b, version)
	b = le.AppendUint32(b, PageSize)
	b = le.AppendUint32(b, PieceSize)
	b = le.AppendUint32(b, 0) // reserved
	b = le.AppendUint64(b, uint64(h.MemorySize))
	b = le.AppendUint64(b, h.Generation)
	b = append(b, h.ID[:]...)
	b = append(b, h.Parent[:]...)
	b = le.AppendUint64(b, uint64(len(h.Extents)))
	b = le.AppendUint64(b, uint64(len(h.Checksums)))
	for _, e := range h.Extents {
		b = le.AppendUint32(b, uint32(e.Offset/PageSize))
		b = le.AppendUint32(b, uint32(e.Length/PageSize))
	}
	for _, s := range h.Checksums {
		b = le.AppendUint32(b, s)
	}
	return le.AppendUint32(b, checksum(b)), nil
}

// Decode reads what Encode wrote and refuses everything else, with a *CorruptError that names no file. It
// allocates in proportion to len(b).
func Decode(b []byte) (*Header, error) {
	le := binary.LittleEndian
	refuse := func(offset int64, format string, args ...any) (*Header, error) {
		return nil, &CorruptError{Offset: offset, Reason: fmt.Sprintf(format, args...)}
	}
	if len(b) < fixedSize+sumSize {
		return refuse(int64(len(b)), "a header has at least %d bytes", fixedSize+sumSize)
	}
	if string(b[:8]) != magic {
		return refuse(0, "not a memory header: it begins with %q", b[:8])
	}
	if v := le.Uint32(b[8:]); v != version {
		return refuse(8, "version %d, this program knows %d", v, version)
	}
	if page, piece := le.Uint32(b[12:]), le.Uint32(b[16:]); page != PageSize || piece != PieceSize {
		return refuse(12, "pages of %d bytes and pieces of %d, want %d and %d", page, piece, PageSize, PieceSize)
	}
	extents, sums := le.Uint64(b[72:]), le.Uint64(b[80:])
	// Each is compared by itself first, so that the sum below cannot overflow.
	size := uint64(len(b))
	if extents > size || sums > size || fixedSize+extents*extentSize+sums*sumSize+sumSize != size {
		return refuse(72, "%d extents and %d checksums do not make %d bytes: torn or truncated", extents, sums, size)
	}
	body := b[:len(b)-sumSize]
	if got, want := checksum(body), le.Uint32(b[len(body):]); got != want {
		return refuse(int64(len(body)), "the header's checksum is %08x, its content has %08x", want, got)
	}
	h := &Header{
		MemorySize: int64(le.Uint64(b[24:])), Generation: le.Uint64(b[32:]),
		ID: ID(b[40:56]), Parent: ID(b[56:72]),
		Extents: make([]Extent, extents), Checksums: make([]uint32, sums),
	}
	rest := b[fixedSize:]
	for i := range h.Extents {
		h.Extents[i] = Extent{int64(le.Uint32(rest)) * PageSize, int64(le.Uint32(rest[4:])) * PageSize}
		rest = rest[extentSize:]
	}
	for i := range h.Checksums {
		h.Checksums[i] = le.Uint32(rest)
		rest = rest[sumSize:]
	}
	if err := h.check(); err != nil {
		return refuse(fixedSize, "%s", err)
	}
	return h, nil
}

// WriteHeader puts the header of the data file at path beside it: synced, renamed into place, and the
// directory synced, which makes the data file's name durable too.
func WriteHeader(path string, h *Header) error {
	b, err := h.Encode()
	if err != nil {
		return fmt.Errorf("write header of %s: %w", path, err)
	}
	return atomicfile.Write(path+HeaderSuffix, b, 0o600)
}

// CreateHeader puts the header of the data file at path beside it, where there is none, without waiting for the disk: for
// a directory that is made durable as a whole, files and names, before anybody relies on it.
func CreateHeader(path string, h *Header) error {
	b, err := h.Encode()
	if err != nil {
		return fmt.Errorf("write header of %s: %w", path, err)
	}
	f, err := os.OpenFile(path+HeaderSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write memory header: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write memory header: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// maxHeader is the longest header file that can be right: every second page of the largest memory an extent.
const maxHeader = fixedSize + (MaxMemory/PageSize/2+1)*(extentSize+sumSize) + sumSize

// ReadHeader reads the header of the data file at path. What it refuses is a *CorruptError.
func ReadHeader(path string) (*Header, error) {
	name := path + HeaderSuffix
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read memory header: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read memory header: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxHeader {
		return nil, &CorruptError{File: name, Reason: fmt.Sprintf("not a regular file of at most %d bytes", int64(maxHeader))}
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read memory header %s: %w", name, err)
	}
	h, err := Decode(b)
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		corrupt.File = name
	}
	return h, err
}
