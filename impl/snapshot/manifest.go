package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wrenn/impl/internal/known"
)

// ErrDamaged says that a snapshot is torn, truncated, changed or not what its place says. The error names
// the file.
var ErrDamaged = errors.New("damaged snapshot")

// The first two fields of every manifest.
const (
	magic   = "wrenn-snapshot"
	version = 2 // 1 had other checksums
)

// maxManifest bounds a manifest in bytes: 16 layers and some disk files take 4 KiB.
const maxManifest = 1 << 20

// Manifest says what a snapshot is and names what it holds.
type Manifest struct {
	// ID tells the snapshot apart from every other; Parent is the ID of the one that its machine was
	// restored from, empty for a machine that booted.
	ID     string `json:"id"`
	Parent string `json:"parent,omitempty"`
	// Generation counts the snapshots of the sandbox from 1.
	Generation uint64 `json:"generation"`
	// FilesOnly snapshots have a disk and no memory.
	FilesOnly bool `json:"filesOnly,omitempty"`
	// Sandbox and Template are what it was taken of.
	Sandbox   string `json:"sandbox"`
	Template  string `json:"template"`
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memoryMib"`
	DiskMiB   int    `json:"diskMib"`
	// Layers is how many layers of memory there are.
	Layers int `json:"layers"`
	// VMM is what made it, kernel the kernel that the guest runs, as their owners name them.
	VMM    string `json:"vmm,omitempty"`
	Kernel string `json:"kernel,omitempty"`
	// EnvdVersion and AccessToken are the guest's daemon's, which asks for the token at the next start.
	EnvdVersion string    `json:"envdVersion,omitempty"`
	AccessToken string    `json:"accessToken,omitempty"`
	CreatedAt   time.Time `json:"createdAt"`
	Files       []File    `json:"files"`
}

// WithoutLayers is m as if it named no layers of memory.
func (m Manifest) WithoutLayers() Manifest {
	m.Files = slices.DeleteFunc(slices.Clone(m.Files), func(f File) bool { return strings.HasPrefix(f.Name, memoryPrefix) })
	return m
}

// File is one file of a snapshot.
type File struct {
	Name string `json:"name"`
	// Size is in bytes, holes included.
	Size int64 `json:"size"`
	// CRC is the CRC-32C of the file's content, by way of sumPieces; absent for the data of a memory layer,
	// whose header has one per piece.
	CRC *uint32 `json:"crc32c,omitempty"`
}

// envelope is the file: the manifest's own checksum beside its bytes.
type envelope struct {
	Magic    string          `json:"magic"`
	Version  int             `json:"version"`
	SHA256   string          `json:"sha256"`
	Manifest json.RawMessage `json:"manifest"`
}

func (m Manifest) encode() ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode a manifest: %w", err)
	}
	sum := sha256.Sum256(body)
	return envelope{Magic: magic, Version: version, SHA256: hex.EncodeToString(sum[:]), Manifest: body}.encode()
}

func (e envelope) encode() ([]byte, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode a manifest: %w", err)
	}
	return append(data, '\n'), nil
}

// Read returns the manifest in dir, which it verifies, without a look at the other files. It wraps
// fs.ErrNotExist where there is none.
func Read(dir string) (Manifest, error) {
	path := filepath.Join(dir, ManifestName)
	data, err := readBounded(path, maxManifest)
	if err != nil {
		return Manifest{}, fmt.Errorf("read a manifest: %w", err)
	}
	m, err := decode(data)
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	return m, nil
}

func decode(data []byte) (Manifest, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Manifest{}, err
	}
	if e.Magic != magic {
		return Manifest{}, fmt.Errorf("magic %q is not %q", e.Magic, magic)
	}
	if e.Version != version {
		return Manifest{}, fmt.Errorf("version %d, this agent knows %d", e.Version, version)
	}
	if sum := sha256.Sum256(e.Manifest); hex.EncodeToString(sum[:]) != e.SHA256 {
		return Manifest{}, errors.New("its checksum does not fit")
	}
	// The checksum is not over its own envelope, whose names JSON's decoder takes in capitals, too.
	if exact, err := e.encode(); err != nil || !bytes.Equal(exact, data) {
		return Manifest{}, errors.New("it is not as it was written")
	}
	var m Manifest
	if err := json.Unmarshal(e.Manifest, &m); err != nil {
		return Manifest{}, err
	}
	for _, f := range m.Files {
		if f.Name == "" || strings.ContainsAny(f.Name, "/\x00") || f.Name == "." || f.Name == ".." {
			return Manifest{}, fmt.Errorf("names a file %q", f.Name)
		}
	}
	return m, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return data, err
}

// describe says what a file of dir holds. What it shares with the file of that name in one of the former
// directories is taken from there.
func describe(ctx context.Context, dir, name string, seen *known.Files, former ...string) (File, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	out := File{Name: name, Size: info.Size()}
	if !isLayerData(name) {
		before, err := known.Of(f)
		if err != nil {
			return File{}, err
		}
		sums, err := sumPieces(ctx, f, info.Size(), openFormer(f, info.Size(), former))
		if err != nil {
			return File{}, err
		}
		sum := crc32.Checksum(sums, castagnoli)
		out.CRC = &sum
		seen.Note(f, before, sum)
		if len(former) > 0 {
			keepSums(f.Name(), sums)
		}
	}
	return out, nil
}

// verify compares the file in dir with its description.
func (f File) verify(ctx context.Context, dir string, seen *known.Files) error {
	path := filepath.Join(dir, f.Name)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, path)
	}
	if err != nil {
		return fmt.Errorf("verify a snapshot: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("verify a snapshot: %w", err)
	}
	if info.Size() != f.Size {
		return fmt.Errorf("%w: %s has %d bytes instead of %d", ErrDamaged, path, info.Size(), f.Size)
	}
	if f.CRC == nil {
		return nil
	}
	before, err := known.Of(file)
	if err != nil || seen.Has(before, *f.CRC) {
		return err
	}
	sums, err := sumPieces(ctx, file, f.Size, nil)
	if err != nil {
		return err
	}
	if sum := crc32.Checksum(sums, castagnoli); sum != *f.CRC {
		return fmt.Errorf("%w: %s has checksum %08x instead of %08x", ErrDamaged, path, sum, *f.CRC)
	}
	if isDisk(f.Name) {
		seen.Note(file, before, *f.CRC)
	}
	return nil
}
