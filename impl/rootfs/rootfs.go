// Package rootfs keeps the templates' root disks and makes private, writable ones of them.
//
// A disk is a dm-snapshot over its template where the kernel has device-mapper: it costs nothing but what the
// guest writes, and no time. Elsewhere it is a copy, which shares blocks where the file system can (xfs,
// btrfs), and is sparse everywhere. Where blocks cannot be shared a copy costs a few hundred milliseconds, so a
// few are kept ready: a create then takes one by a rename, and another is copied in the background.
//
// All that acts on a disk takes the directory that it lies in, a sandbox's or a snapshot's, and may be repeated
// after a crash. A sandbox's disk is not synced, since it is worth nothing after a crash of the host: its
// machine is gone too. A snapshot's is (Link, Sync).
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"wrenn/impl/devicemapper"
	"wrenn/impl/internal/sparsefile"
)

// DefaultReady is how many copies of each used template are kept ready. Two cover a create that
// follows another while its replacement is being copied; each costs the template's allocated size.
const DefaultReady = 2

// ErrNoSpace is returned when the file system of a disk is full.
var ErrNoSpace = sparsefile.ErrNoSpace

// Config is what a Store is made of.
type Config struct {
	// ImageDir is what `make image` built; templates are below its directory "templates".
	ImageDir string
	// Dir is the Store's own, on the file system of the sandboxes' and snapshots' directories: the copies made
	// ahead, which a rename hands out, and what is known of the templates' contents.
	Dir string
	// Mode is how new disks are made; empty takes dm-snapshots where they work and copies elsewhere.
	Mode Mode
	// Ready is how many copies are kept per template in copy mode; 0 keeps none.
	Ready  int
	Logger *slog.Logger
}

// Store makes, moves and removes root disks.
type Store struct {
	cfg      Config
	mode     Mode
	readyDir string
	hashes   *hashes
	devices  *devicemapper.Manager // nil where there are none
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu      sync.Mutex
	filling map[string]bool // templates under way; true when asked for again meanwhile
	serial  int
	closed  bool
}

// NewStore finds out how disks are made here and says it in the log. It removes the copies that an earlier life
// kept ready, which are never trusted: they were not synced, so after a crash of the host they may be torn.
func NewStore(cfg Config) (*Store, error) {
	s := &Store{
		cfg: cfg, readyDir: filepath.Join(cfg.Dir, "ready"), hashes: openHashes(filepath.Join(cfg.Dir, "hashes.json")),
		filling: make(map[string]bool),
	}
	if err := os.RemoveAll(s.readyDir); err != nil {
		return nil, fmt.Errorf("remove ready disks of an earlier life: %w", err)
	}
	if err := os.MkdirAll(s.readyDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of ready disks: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.choose(); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

// Mode is how new disks are made.
func (s *Store) Mode() Mode { return s.mode }

// Template is Load on the Store's image directory.
func (s *Store) Template(name string) (Template, error) { return Load(s.cfg.ImageDir, name) }

// Templates is List on the Store's image directory.
func (s *Store) Templates() ([]string, error) { return List(s.cfg.ImageDir) }

// Close stops what runs in the background and removes the ready copies. Disks stay as they are.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	errs := []error{s.closeDevices()}
	if err := os.RemoveAll(s.readyDir); err != nil {
		errs = append(errs, fmt.Errorf("remove ready disks: %w", err))
	}
	return errors.Join(errs...)
}
