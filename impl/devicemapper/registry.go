package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// LoopRegistry shares one read-only loop device among all who ask for the same file, whatever name they have
// for it. It counts them, and lets the device go with the last. It is safe for concurrent use.
type LoopRegistry struct {
	loops *loops

	mu   sync.Mutex
	held map[fileID]*shared
}

type shared struct {
	loop  *loop
	bytes int64
	users int
}

// Hold is one user's share of a loop device.
type Hold struct {
	registry *LoopRegistry
	file     fileID
	once     sync.Once
	// Number is the device's, as stat's st_rdev; Bytes is the size of the file.
	Number uint64
	Bytes  int64
}

// NewLoopRegistry returns an empty registry. Loop devices carry the mark of dir, an absolute path, by which a
// later registry of the same dir knows them.
func NewLoopRegistry(dir string) *LoopRegistry {
	return &LoopRegistry{loops: &loops{owner: mark(dir)}, held: make(map[fileID]*shared)}
}

// Acquire returns a share of the loop device over the file at path. Where the process holds none, one that an
// earlier life attached and something still uses is adopted, else a new one is attached.
func (r *LoopRegistry) Acquire(ctx context.Context, path string) (*Hold, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the origin: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open the origin: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size()%sector != 0 {
		return nil, fmt.Errorf("origin %s is no disk: not a file of whole sectors", path)
	}
	id, err := idOf(f)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.held[id]
	if s == nil {
		l, err := r.take(ctx, f, id)
		if err != nil {
			return nil, err
		}
		s = &shared{loop: l, bytes: info.Size()}
		r.held[id] = s
	}
	s.users++
	return &Hold{registry: r, file: id, Number: s.loop.number, Bytes: s.bytes}, nil
}

func (r *LoopRegistry) take(ctx context.Context, f *os.File, id fileID) (*loop, error) {
	l, err := r.loops.find(id, true)
	if l != nil || err != nil {
		return l, err
	}
	return r.loops.attach(ctx, f, true)
}

// Release gives the share back; a second time it does nothing.
func (h *Hold) Release() error {
	var err error
	h.once.Do(func() { err = h.registry.release(h.file) })
	return err
}

func (r *LoopRegistry) release(id fileID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.held[id]
	if s == nil {
		return nil // the registry was closed
	}
	if s.users--; s.users > 0 {
		return nil
	}
	delete(r.held, id)
	return s.loop.Close()
}

// Users tells how many hold the loop device over the file at path.
func (r *LoopRegistry) Users(path string) int {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	id, err := idOf(f)
	if err != nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.held[id]; s != nil {
		return s.users
	}
	return 0
}

// Close lets go of all loop devices. Those that a device-mapper device uses live on with it.
func (r *LoopRegistry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for id, s := range r.held {
		errs = append(errs, s.loop.Close())
		delete(r.held, id)
	}
	return errors.Join(errs...)
}
