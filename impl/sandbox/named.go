package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/safename"
	"wrenn/impl/snapshot"
)

// SnapshotInfo is a named snapshot as it is now.
type SnapshotInfo struct {
	Name string
	// Sandbox and Template are what it was taken of.
	Sandbox, Template         string
	CreatedAt                 time.Time
	VCPUs, MemoryMiB, DiskMiB int
	// SizeBytes is what it takes on the disk: allocated blocks, shared ones included.
	SizeBytes int64
	// Users is how many sandboxes that were created from it are there.
	Users int
}

// Directories beside the named snapshots, which are no names since they begin with a dot.
const (
	namedNew  = ".new"  // holds those that are being written, by their names
	namedGone = ".gone" // holds those that are being removed
)

func (m *Manager) namedDir(name string) string { return filepath.Join(m.cfg.SnapshotDir, name) }

func (m *Manager) namedNewDir(name string) string {
	return filepath.Join(m.cfg.SnapshotDir, namedNew, name)
}

// reserveName keeps a new snapshot's name for one caller until release.
func (m *Manager) reserveName(name string) (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if _, err := os.Lstat(m.namedDir(name)); err == nil || m.naming[name] {
		return nil, fmt.Errorf("%w: %s", ErrSnapshotExists, name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for snapshot %s: %w", name, err)
	}
	m.naming[name] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.naming, name)
	}, nil
}

// readNamed returns the manifest of a named snapshot, or ErrNoSnapshot.
func (m *Manager) readNamed(name string) (snapshot.Manifest, error) {
	manifest, err := snapshot.Read(m.namedDir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return manifest, fmt.Errorf("%w: %s", ErrNoSnapshot, name)
	}
	return manifest, err
}

func (m *Manager) namedInfo(name string) (SnapshotInfo, error) {
	manifest, err := m.readNamed(name)
	if err != nil {
		return SnapshotInfo{}, err
	}
	size, err := snapshot.Size(m.namedDir(name))
	return SnapshotInfo{
		Name: name, Sandbox: manifest.Sandbox, Template: manifest.Template, CreatedAt: manifest.CreatedAt,
		VCPUs: manifest.VCPUs, MemoryMiB: manifest.MemoryMiB, DiskMiB: manifest.DiskMiB, SizeBytes: size, Users: len(m.users(name)),
	}, err
}

// ListSnapshots returns the named snapshots, oldest first. One that cannot be read is passed over, and said in
// the log.
func (m *Manager) ListSnapshots() ([]SnapshotInfo, error) {
	entries, err := os.ReadDir(m.cfg.SnapshotDir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var infos []SnapshotInfo
	for _, e := range entries {
		if !e.IsDir() || safename.Check("snapshot", e.Name()) != nil {
			continue
		}
		info, err := m.namedInfo(e.Name())
		if err != nil {
			if !errors.Is(err, ErrNoSnapshot) {
				m.cfg.Logger.Error("a snapshot cannot be read", "snapshot", e.Name(), "error", err)
			}
			continue
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b SnapshotInfo) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.Name, b.Name))
	})
	return infos, nil
}

// users are the sandboxes that were created from a named snapshot, in whatever state they are.
func (m *Manager) users(name string) []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.usersLocked(name)
}

func (m *Manager) usersLocked(name string) []Info {
	var users []Info
	for _, s := range m.sandboxes {
		if i := s.info(); i.Snapshot == name {
			users = append(users, i)
		}
	}
	return users
}

// DeleteSnapshot removes a named snapshot. While sandboxes that were created from it are there it is refused
// with ErrSnapshotUsed, unless forced: they have links to what they need. One that is just being created from
// it is waited for by no force.
func (m *Manager) DeleteSnapshot(name string, force bool) error {
	if err := validateSnapshotName(name); err != nil {
		return err
	}
	gone, err := m.unname(name, force)
	if err != nil {
		return err
	}
	if err := errors.Join(atomicfile.SyncDir(m.cfg.SnapshotDir), os.RemoveAll(gone)); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", name, err)
	}
	m.cfg.Logger.Info("snapshot is gone", "snapshot", name)
	return nil
}

// unname takes the name off a snapshot that may be removed. Creates look for theirs under the same lock.
func (m *Manager) unname(name string, force bool) (gone string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := os.Lstat(m.namedDir(name)); err != nil || m.naming[name] {
		if m.naming[name] || errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %s", ErrNoSnapshot, name)
		}
		return "", err
	}
	for _, i := range m.usersLocked(name) {
		if !force || i.State == Creating {
			return "", fmt.Errorf("%w: sandbox %s was created from %s and is %s", ErrSnapshotUsed, i.ID, name, i.State)
		}
	}
	m.goneSerial++
	gone = filepath.Join(m.cfg.SnapshotDir, namedGone, fmt.Sprintf("%d-%s", m.goneSerial, name))
	if err := os.RemoveAll(gone); err != nil {
		return "", fmt.Errorf("remove snapshot %s: %w", name, err)
	}
	if err := os.Rename(m.namedDir(name), gone); err != nil {
		return "", fmt.Errorf("remove snapshot %s: %w", name, err)
	}
	return gone, nil
}

// clearNamed removes what a former life has left half written or half removed, and caches, which nobody knows
// to be whole.
func (m *Manager) clearNamed() error {
	var errs []error
	for _, name := range []string{namedNew, namedGone} {
		dir := filepath.Join(m.cfg.SnapshotDir, name)
		errs = append(errs, os.RemoveAll(dir), os.Mkdir(dir, 0o700))
	}
	entries, err := os.ReadDir(m.cfg.SnapshotDir)
	for _, e := range entries {
		errs = append(errs, dropFlat(filepath.Join(m.cfg.SnapshotDir, e.Name())))
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("clear up unfinished snapshots: %w", err)
	}
	return nil
}

// dropFlat removes the cache of flat memory in dir, and what belongs to it; a machine that maps it keeps it.
func dropFlat(dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, snapshot.FlatName+"*"))
	for _, path := range found {
		err = errors.Join(err, removeIfThere(path))
	}
	return err
}
