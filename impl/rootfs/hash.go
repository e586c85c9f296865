package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"wrenn/impl/internal/atomicfile"
)

// identity is what a file's content cannot change without: the kernel sets the time of change at every write.
type identity struct {
	Dev, Ino               uint64
	Size, Modified, Change int64
}

func identityOf(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return identity{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Modified: st.Mtim.Nano(), Change: st.Ctim.Nano()}, nil
}

type known struct {
	Identity identity
	Hash     string
}

// hashes knows the contents of templates. Reading one takes a second or so, and therefore happens once per
// template, not once per start of an agent: what was read is kept in a file, beside what tells the file from
// a later one.
type hashes struct {
	path   string
	flight singleflight.Group
	mu     sync.Mutex
	known  map[string]known // by the template's path
}

// openHashes reads what an earlier life has learned. A file that cannot be read is only a loss of time.
func openHashes(path string) *hashes {
	h := &hashes{path: path, known: make(map[string]known)}
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &h.known) != nil || h.known == nil {
		h.known = make(map[string]known)
	}
	return h
}

// of returns what the file at path is and holds. Callers that come together share one reading, which ends with the
// context of the first.
func (h *hashes) of(ctx context.Context, path string) (known, error) {
	for {
		v, err, shared := h.flight.Do(path, func() (any, error) { return h.read(ctx, path) })
		if shared && errors.Is(err, context.Canceled) && ctx.Err() == nil {
			continue // it was the other's context
		}
		if err != nil {
			return known{}, fmt.Errorf("hash %s: %w", path, err)
		}
		return v.(known), nil
	}
}

func (h *hashes) read(ctx context.Context, path string) (known, error) {
	f, err := os.Open(path)
	if err != nil {
		return known{}, err
	}
	defer f.Close()
	before, err := identityOf(f)
	if err != nil {
		return known{}, err
	}
	h.mu.Lock()
	k, ok := h.known[path]
	h.mu.Unlock()
	if ok && k.Identity == before {
		return k, nil
	}
	hash, err := hashFile(ctx, f)
	if err != nil {
		return known{}, err
	}
	after, err := identityOf(f)
	if err != nil {
		return known{}, err
	}
	if before != after {
		return known{}, errors.New("it is being changed")
	}
	k = known{Identity: after, Hash: hash}
	return k, h.learn(path, k)
}

func (h *hashes) learn(path string, k known) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known[path] = k
	for path := range h.known {
		if _, err := os.Stat(path); err != nil {
			delete(h.known, path)
		}
	}
	data, err := json.Marshal(h.known)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(h.path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(h.path, data, 0o600)
}

// hashBlock is the unit in which zeros are left out: the block of the file systems in question.
const hashBlock = 4096

// hashChunk is how much is read at once, and between two looks at the context.
const hashChunk = 1 << 20

// hashFile is the SHA-256 of the file's size and of its blocks of 4 KiB that are not all zero, each behind its
// number. Holes need thus not be read, and a copy with other holes has the same hash.
func hashFile(ctx context.Context, f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	number := make([]byte, 8)
	put := func(v int64, data []byte) {
		binary.LittleEndian.PutUint64(number, uint64(v))
		sum.Write(number)
		sum.Write(data)
	}
	put(info.Size(), nil)
	buf, zero := make([]byte, hashChunk), make([]byte, hashBlock)
	for offset := int64(0); ; {
		offset, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return "sha256-sparse:" + hex.EncodeToString(sum.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		offset -= offset % hashBlock
		n, err := f.ReadAt(buf, offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		for at := 0; at < n; at += hashBlock {
			block := buf[at:min(at+hashBlock, n)]
			if !bytes.Equal(block, zero[:len(block)]) {
				put((offset+int64(at))/hashBlock, block)
			}
		}
		offset += int64(n)
	}
}
