// Package rootfs gives each sandbox a root disk of its own: a copy of its template's that shares
// blocks where the file system can, and is sparse everywhere.
//
// Where blocks cannot be shared a copy costs a few hundred milliseconds, so a few are kept ready: a
// create then takes one by a rename, and another is copied in the background.
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// DefaultReady is how many copies of each used template are kept ready. Two cover a create that
// follows another while its replacement is being copied; each costs the template's allocated size.
const DefaultReady = 2

// Config is what a Store is made of.
type Config struct {
	// ImageDir is what `make image` built; templates are below its directory "templates".
	ImageDir string
	// ReadyDir keeps the copies made ahead; it must be on the file system of the sandboxes' disks, so
	// that a rename can hand one out. Its content belongs to the Store.
	ReadyDir string
	// Ready is how many copies are kept per template; 0 keeps none.
	Ready  int
	Logger *slog.Logger
}

// Store hands out root disks.
type Store struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	filling map[string]bool
	serial  int
	closed  bool
}

// NewStore empties ReadyDir, whose copies of an earlier life are never trusted: they were not synced, so
// after a crash of the host they may be torn.
func NewStore(cfg Config) (*Store, error) {
	if err := os.RemoveAll(cfg.ReadyDir); err != nil {
		return nil, fmt.Errorf("remove ready disks of an earlier life: %w", err)
	}
	if err := os.MkdirAll(cfg.ReadyDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of ready disks: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Store{cfg: cfg, ctx: ctx, cancel: cancel, filling: make(map[string]bool)}, nil
}

// Template is Load on the Store's image directory.
func (s *Store) Template(name string) (Template, error) { return Load(s.cfg.ImageDir, name) }

// Templates is List on the Store's image directory.
func (s *Store) Templates() ([]string, error) { return List(s.cfg.ImageDir) }

// Create puts a private, writable copy of the template's disk at path, which must not exist. It
// returns ErrNoTemplate, or ErrNoSpace when the file system is full.
func (s *Store) Create(ctx context.Context, template, path string) error {
	t, err := s.Template(template)
	if err != nil {
		return err
	}
	defer s.Fill(t.Name)
	if s.take(t, path) {
		return nil
	}
	return Copy(ctx, t.path, path)
}

// Fill makes copies of the template in the background until Config.Ready are there.
func (s *Store) Fill(template string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.filling[template] || s.cfg.Ready == 0 {
		return
	}
	s.filling[template] = true
	s.wg.Go(func() {
		err := s.fill(template)
		if err != nil && s.ctx.Err() == nil {
			s.cfg.Logger.Warn("cannot copy a disk ahead of need", "template", template, "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.filling, template)
	})
}

// Close stops the background copies and removes the ready ones.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	if err := os.RemoveAll(s.cfg.ReadyDir); err != nil {
		return fmt.Errorf("remove ready disks: %w", err)
	}
	return nil
}

func (s *Store) fill(template string) error {
	for {
		t, err := s.Template(template)
		if err != nil {
			return err
		}
		ready, err := s.ready(t)
		if err != nil || len(ready) >= s.cfg.Ready {
			return err
		}
		s.mu.Lock()
		s.serial++
		name := fmt.Sprintf("%s@%s@%d", t.Name, t.generation, s.serial)
		s.mu.Unlock()
		path := filepath.Join(s.cfg.ReadyDir, name)
		if err := Copy(s.ctx, t.path, path+".part"); err != nil {
			return err
		}
		if err := os.Rename(path+".part", path); err != nil {
			return fmt.Errorf("file a ready disk: %w", err)
		}
	}
}

// ready lists the finished copies of the template's present generation and removes older ones.
func (s *Store) ready(t Template) ([]string, error) {
	entries, err := os.ReadDir(s.cfg.ReadyDir)
	if err != nil {
		return nil, fmt.Errorf("list ready disks: %w", err)
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(s.cfg.ReadyDir, e.Name())
		parts := strings.Split(e.Name(), "@")
		switch {
		case len(parts) != 3 || parts[0] != t.Name || strings.HasSuffix(e.Name(), ".part"):
		case parts[1] == t.generation:
			paths = append(paths, path)
		default:
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("remove a disk of an older template: %w", err)
			}
		}
	}
	return paths, nil
}

// take moves a ready copy to path; false when there was none. Two takers of one copy cannot both win,
// since the rename of the second finds nothing.
func (s *Store) take(t Template, path string) bool {
	paths, err := s.ready(t)
	if err != nil {
		s.cfg.Logger.Warn("cannot look for ready disks", "error", err)
		return false
	}
	for _, ready := range paths {
		if os.Rename(ready, path) == nil {
			return true
		}
	}
	return false
}
