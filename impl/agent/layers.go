package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/internal/known"
	"wrenn/impl/memfile"
	"wrenn/impl/sandbox"
	"wrenn/impl/snapshot"
	"wrenn/impl/uffd"
)

// Memory backends.
const (
	// BackendFile lets the VMM map one flat file privately.
	BackendFile = "file"
	// BackendUffd lets a page server of its own fill a machine's memory as it needs it.
	BackendUffd = "uffd"
)

// Names in a sandbox's directory.
const (
	pagerSocket = "pager.sock"
	pagerRecord = "pager.json" // the page server's identity
	pagerLog    = "pager.log"
)

// memoryPart is the real sandbox.Memory.
type memoryPart struct {
	uffd   bool
	diffs  bool
	logger *slog.Logger
	seen   known.Files // layers

	mu     sync.Mutex
	flats  map[string]*sync.Mutex   // named snapshots whose flat file is being made, by directory
	pagers map[string]*uffd.Process // by the sandbox's directory
	closed bool
}

// newMemoryPart looks whether the file system of dir can hold diffs.
func newMemoryPart(cfg Config) *memoryPart {
	m := &memoryPart{
		uffd: cfg.MemoryBackend == BackendUffd, diffs: true, logger: cfg.Logger, flats: map[string]*sync.Mutex{}, pagers: map[string]*uffd.Process{},
	}
	if err := memfile.CheckHoles(cfg.Dir); err != nil {
		m.diffs = false
		cfg.Logger.Warn("each snapshot will hold all memory, since the file system does not tell holes from data", "dir", cfg.Dir, "error", err)
	}
	return m
}

func (m *memoryPart) Diffs() bool { return m.diffs }

// damaged makes what memfile refuses known to the domain.
func damaged(err error) error {
	if errors.Is(err, memfile.ErrCorrupt) {
		return fmt.Errorf("%w: %w", snapshot.ErrDamaged, err)
	}
	return err
}

func layerPaths(dir string, n int) []string {
	paths := make([]string, n)
	for i := range n {
		paths[i] = filepath.Join(dir, snapshot.LayerName(i))
	}
	return paths
}

func (m *memoryPart) Describe(ctx context.Context, dir string, n int, layer sandbox.Layer) error {
	path := filepath.Join(dir, snapshot.LayerName(n))
	var parent *memfile.Header
	if n > 0 {
		var err error
		if parent, err = memfile.ReadHeader(filepath.Join(dir, snapshot.LayerName(n-1))); err != nil {
			return damaged(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("describe a layer of memory: %w", err)
	}
	defer f.Close()
	before, err := known.Of(f)
	if err != nil {
		return err
	}
	header, err := memfile.Describe(ctx, f, parent)
	if err != nil {
		return damaged(err)
	}
	m.seen.Note(f, before, sumOf(header))
	if want := int64(layer.MemoryMiB) << 20; header.MemorySize != want {
		return fmt.Errorf("%s has %d bytes, and the guest %d", path, header.MemorySize, want)
	}
	return memfile.CreateHeader(path, header) // the seal of the snapshot syncs it
}

// Verify compares everything that is not known to be right, unless a page server will: it compares what it reads, when
// it reads it.
func (m *memoryPart) Verify(ctx context.Context, dir string, n int) error {
	paths := layerPaths(dir, n)
	chain, err := memfile.Open(paths...) // compares what a layer says of the one below
	if err != nil {
		return damaged(err)
	}
	if err := chain.Close(); err != nil || m.uffd {
		return err
	}
	for _, path := range paths {
		if err := m.verifyLayer(ctx, path); err != nil {
			return damaged(err)
		}
	}
	return nil
}

func (m *memoryPart) verifyLayer(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify a layer of memory: %w", err)
	}
	defer f.Close()
	header, err := memfile.ReadHeader(path)
	if err != nil {
		return err
	}
	before, err := known.Of(f)
	if err != nil || m.seen.Has(before, sumOf(header)) {
		return err
	}
	if err := memfile.Verify(ctx, path); err != nil {
		return err
	}
	m.seen.Note(f, before, sumOf(header))
	return nil
}

// sumOf stands for all that a header says of its layer's data.
func sumOf(h *memfile.Header) uint32 {
	sum := crc32.NewIEEE()
	_ = binary.Write(sum, binary.LittleEndian, h.Checksums) // a hash takes anything
	for _, e := range h.Extents {
		_ = binary.Write(sum, binary.LittleEndian, e)
	}
	return sum.Sum32()
}

func (m *memoryPart) Provide(ctx context.Context, use sandbox.MemoryUse) (sandbox.MemorySource, error) {
	switch {
	case m.uffd:
		return m.startPager(ctx, use)
	case use.Layers == 1:
		return sandbox.MemorySource{Path: filepath.Join(use.From, snapshot.LayerName(0))}, nil
	case use.Shared:
		flat := filepath.Join(use.From, snapshot.FlatName)
		turn := m.turn(use.From)
		turn.Lock()
		defer turn.Unlock()
		return sandbox.MemorySource{Path: flat}, m.flatten(ctx, use, flat)
	default:
		flat := filepath.Join(use.Dir, snapshot.FlatName)
		return sandbox.MemorySource{Path: flat}, m.flatten(ctx, use, flat)
	}
}

// turn is whose turn it is to make the flat file in dir.
func (m *memoryPart) turn(dir string) *sync.Mutex {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flats[dir] == nil {
		m.flats[dir] = &sync.Mutex{}
	}
	return m.flats[dir]
}

func (m *memoryPart) flatten(ctx context.Context, use sandbox.MemoryUse, flat string) error {
	chain, err := memfile.Open(layerPaths(use.From, use.Layers)...)
	if err != nil {
		return damaged(err)
	}
	defer chain.Close() //nolint:errcheck // it was read
	done, err := chain.Flatten(ctx, flat)
	if err != nil {
		return damaged(err)
	}
	m.logger.Debug("memory is flat", "sandbox", use.ID, "layers", use.Layers, "updated", done.Updated, "reflinked", done.Reflinked, "shared", done.Shared, "copied", done.Copied)
	return nil
}

func (m *memoryPart) Merge(ctx context.Context, from string, n int, to string) error {
	chain, err := memfile.Open(layerPaths(from, n)...)
	if err != nil {
		return damaged(err)
	}
	defer chain.Close() //nolint:errcheck // it was read
	_, err = chain.Merge(ctx, filepath.Join(to, snapshot.LayerName(0)))
	return damaged(err)
}

// startPager starts a page server that lives on when the agent ends.
func (m *memoryPart) startPager(ctx context.Context, use sandbox.MemoryUse) (sandbox.MemorySource, error) {
	socket := filepath.Join(use.Dir, pagerSocket)
	if err := m.Release(ctx, use.ID, use.Dir); err != nil {
		return sandbox.MemorySource{}, err
	}
	p, err := uffd.Start(ctx, uffd.StartConfig{
		Config: uffd.Config{
			Socket: socket, Layers: layerPaths(use.From, use.Layers), WorkingSet: filepath.Join(use.From, snapshot.WorkingSetName),
		},
		LogPath: filepath.Join(use.Dir, pagerLog),
	})
	if err != nil {
		return sandbox.MemorySource{}, err
	}
	m.mu.Lock()
	m.pagers[use.Dir] = p
	m.mu.Unlock()
	id, err := json.Marshal(p.Identity())
	if err == nil {
		err = atomicfile.Write(filepath.Join(use.Dir, pagerRecord), id, 0o600)
	}
	return sandbox.MemorySource{Path: socket, Uffd: true}, err
}

// pager is the page server of the sandbox in dir, of this life or of a former one; nil when there is none.
func (m *memoryPart) pager(dir string) (*uffd.Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pagers[dir]; p != nil {
		return p, nil
	}
	data, err := os.ReadFile(filepath.Join(dir, pagerRecord))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find a page server: %w", err)
	}
	var id uffd.Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, fmt.Errorf("find a page server: %w", err)
	}
	p, err := uffd.Adopt(id)
	if errors.Is(err, uffd.ErrGone) {
		return nil, nil
	}
	if err == nil {
		m.pagers[dir] = p
	}
	return p, err
}

func (m *memoryPart) Release(ctx context.Context, _, dir string) error {
	p, err := m.pager(dir)
	if err != nil {
		return err
	}
	if p != nil {
		if err := p.Kill(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	delete(m.pagers, dir)
	m.mu.Unlock()
	for _, name := range []string{pagerSocket, pagerRecord} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what a page server has left: %w", err)
		}
	}
	return nil
}

// guard kills a machine whose page server has ended: it would hang at the next page that is missing.
func (m *memoryPart) guard(ctx context.Context, dir string, vmm machine) {
	p, err := m.pager(dir)
	if err != nil {
		m.logger.Error("the page server of a sandbox cannot be watched", "dir", dir, "error", err)
	}
	if p == nil {
		return
	}
	go func() {
		if err := p.Guard(ctx, vmm.Done(), vmm.Kill); err != nil && ctx.Err() == nil && !m.isClosed() {
			m.logger.Error("a sandbox has lost its page server", "dir", dir, "error", err)
		}
	}()
}

func (m *memoryPart) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// close lets the page servers live on without being watched.
func (m *memoryPart) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, p := range m.pagers {
		p.Release()
	}
	m.pagers = map[string]*uffd.Process{}
}
