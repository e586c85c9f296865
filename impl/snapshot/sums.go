package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"wrenn/impl/internal/fiemap"
)

// piece is what is summed up at once: large beside a system call, small beside a processor's cache.
const piece = 256 << 10

// sumsSuffix makes the name of the cache beside a disk's file with the sums of its pieces: the next snapshot of a
// disk that shares blocks with it then reads only the others. It is used if it has the checksum that the manifest
// has for the file itself, and is not synced.
const sumsSuffix = ".sums"

// sumBytes is the length of one sum: the piece's index as 8 bytes and the CRC-32C of its content as 4.
const sumBytes = 12

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumPieces are the sums of the pieces of a file that are not all zero, in order, by all CPUs; a disk has a hundred
// times what a pause writes of memory. A hole and zeros are the same, which a copy or the file system may turn into
// each other, and a sparse disk costs what its data costs. Of a former file, if there is one, only what is not shared
// is read. Their CRC-32C is that of the file.
func sumPieces(ctx context.Context, f *os.File, size int64, known *former) ([]byte, error) {
	found, err := dataPieces(f, size)
	if err != nil {
		return nil, err
	}
	sums := make([]uint32, len(found))
	zero := make([]bool, len(found))
	var next atomic.Int64
	workers, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), len(found)) {
		workers.Go(func() error {
			buf := make([]byte, piece)
			for i := next.Add(1) - 1; i < int64(len(found)); i = next.Add(1) - 1 {
				if err := ctx.Err(); err != nil {
					return err
				}
				if known.has(found[i]) {
					sums[i], zero[i] = known.sum(found[i])
					continue
				}
				at := found[i] * piece
				n, err := f.ReadAt(buf[:min(piece, size-at)], at)
				if err != nil {
					return fmt.Errorf("read %s at %d: %w", f.Name(), at, err)
				}
				sums[i], zero[i] = crc32.Checksum(buf[:n], castagnoli), allZero(buf[:n])
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return nil, err
	}
	var all []byte
	for i, index := range found {
		if !zero[i] {
			all = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(all, uint64(index)), sums[i])
		}
	}
	return all, nil
}

// former is a file whose sums are known and which shares blocks with another. Nil is none.
type former struct {
	sums    map[int64]uint32
	changed map[int64]bool // pieces in which the two may differ
}

func (k *former) has(index int64) bool { return k != nil && !k.changed[index] }

// sum is that of a piece which both have.
func (k *former) sum(index int64) (sum uint32, zero bool) {
	sum, ok := k.sums[index]
	return sum, !ok
}

// openFormer finds the file of f's name in the first of the directories that has its sums, and what it shares with f.
// Whatever is in the way costs no more than time: then f is read.
func openFormer(f *os.File, size int64, dirs []string) *former {
	for _, dir := range dirs {
		name := filepath.Base(f.Name())
		sums, ok := readSums(dir, name, size)
		if !ok {
			continue
		}
		other, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		parts, err := fiemap.Unshared(f, other, size)
		_ = other.Close() // it was read
		if err != nil {
			continue
		}
		k := &former{sums: sums, changed: map[int64]bool{}}
		for _, p := range parts {
			for index := p.Offset / piece; index*piece < p.End(); index++ {
				k.changed[index] = true
			}
		}
		return k
	}
	return nil
}

// readSums returns the sums that are kept beside the file of that name in a snapshot's directory, if they are those of
// the file that its manifest names.
func readSums(dir, name string, size int64) (map[int64]uint32, bool) {
	m, err := Read(dir)
	if err != nil {
		return nil, false
	}
	all, err := os.ReadFile(filepath.Join(dir, name+sumsSuffix))
	if err != nil || len(all)%sumBytes != 0 {
		return nil, false
	}
	sum := crc32.Checksum(all, castagnoli)
	for _, f := range m.Files {
		if f.Name != name || f.Size != size || f.CRC == nil || *f.CRC != sum {
			continue
		}
		sums := make(map[int64]uint32, len(all)/sumBytes)
		for ; len(all) > 0; all = all[sumBytes:] {
			sums[int64(binary.LittleEndian.Uint64(all))] = binary.LittleEndian.Uint32(all[8:])
		}
		return sums, true
	}
	return nil, false
}

// keepSums leaves a file's sums beside it. Without them the next snapshot takes longer.
func keepSums(path string, all []byte) { _ = os.WriteFile(path+sumsSuffix, all, 0o600) }

// dataPieces are the indices of the pieces in which there is data. XFS hides data from SEEK_DATA that a write
// nearby has made it reserve room for, in a file that shares blocks (seen with Linux 6.1); but the write itself
// is in the same piece, since it reserves no more than 128 KiB around it.
func dataPieces(f *os.File, size int64) ([]int64, error) {
	var found []int64
	for at := int64(0); at < size; {
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // holes up to the end
		}
		if err != nil {
			return nil, fmt.Errorf("find data of %s: %w", f.Name(), err)
		}
		index := data / piece
		found = append(found, index)
		at = (index + 1) * piece
	}
	return found, nil
}

// zeros is what allZero compares with; bytes.Equal is vectorised.
var zeros [piece]byte

func allZero(b []byte) bool { return string(b) == string(zeros[:len(b)]) }
