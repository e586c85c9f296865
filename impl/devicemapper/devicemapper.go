// Package devicemapper makes writable disks over read-only ones: a dm-snapshot joins an origin, a file that
// never changes, shared by a loop device that is counted, with a sparse CoW file that takes what is written.
//
// It speaks to the kernel by ioctl. dmsetup(8) would cost a fork per command, four per disk, tell errors by
// text alone, and wait for udev where there is one; the libraries there are either wrap the C library or know
// other targets only. The structures come from golang.org/x/sys/unix, and what is left is a page of code.
//
// Nothing is kept in memory that is needed to take a disk down: names derive from ids, identifiers say whose a
// device is, and loop devices clear themselves once no table uses them. So a process may be killed anywhere.
package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Config is what a Manager is made of.
type Config struct {
	// Dir is the absolute path of the owner's directory. Devices carry its mark, and Reclaim touches no others.
	Dir    string
	Logger *slog.Logger
}

// Manager makes and removes the devices of one owner.
type Manager struct {
	cfg     Config
	owner   string
	control *control
	loops   *loops
	origins *LoopRegistry

	mu    sync.Mutex
	disks map[string]*disk // those with a device of this Manager, or with an act under way
}

// disk is what a Manager remembers of a disk.
type disk struct {
	turn   sync.Mutex
	origin *Hold // its share, nil without a device
	users  int   // acts under way or waiting for their turn; guarded by Manager.mu
}

// Disk says what a device is made of.
type Disk struct {
	// ID names the device: Name(ID). One device per ID.
	ID string
	// Origin is the file underneath, at most Size bytes and never written to. Beyond its end there are zeros.
	Origin string
	// Size is what the disk has, in bytes, a multiple of 512.
	Size int64
	// Cow is the absolute path of the file that takes what is written, of CowSize(Size) bytes. It is part of the
	// device's identity.
	Cow string
}

// Open returns ErrUnsupported where there is no device-mapper. That there is says little: Probe tells whether
// disks can be made.
func Open(cfg Config) (*Manager, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("open device-mapper: %q is no absolute path", cfg.Dir)
	}
	c, err := openControl()
	if err != nil {
		return nil, err
	}
	registry := NewLoopRegistry(cfg.Dir)
	return &Manager{
		cfg: cfg, owner: registry.loops.owner, control: c, loops: registry.loops, origins: registry, disks: make(map[string]*disk),
	}, nil
}

// Close lets go of the control device and of the shares of origins. Disks stay as they are.
func (m *Manager) Close() error { return errors.Join(m.origins.Close(), m.control.Close()) }

// Origins is the registry that the Manager shares origins by.
func (m *Manager) Origins() *LoopRegistry { return m.origins }

// probeTimeout bounds a probe. It takes a tenth of a second where all works.
const probeTimeout = 15 * time.Second

// Probe makes a disk in Dir that is larger than its origin, writes to it, reads it, and removes it. An error
// says what does not work here.
func (m *Manager) Probe(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	dir, err := os.MkdirTemp(m.cfg.Dir, "probe-")
	if err != nil {
		return fmt.Errorf("probe device-mapper: %w", err)
	}
	d := Disk{ID: filepath.Base(dir), Origin: filepath.Join(dir, "origin"), Size: 2 << 20, Cow: filepath.Join(dir, "cow")}
	defer func() {
		clean := context.WithoutCancel(ctx)
		err = errors.Join(err, m.Remove(clean, d), os.RemoveAll(dir))
		if err != nil {
			err = fmt.Errorf("probe device-mapper: %w", err)
		}
	}()
	if err := os.WriteFile(d.Origin, make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	path, err := m.Create(ctx, d)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("wrenn"), 1<<20-2) // across the origin's end
	return errors.Join(err, f.Sync(), f.Close())
}

// with holds the disk's turn while act runs: two acts on one disk never overlap.
func (m *Manager) with(id string, act func(name string, d *disk) error) error {
	name, err := Name(id)
	if err != nil {
		return err
	}
	m.mu.Lock()
	d := m.disks[id]
	if d == nil {
		d = &disk{}
		m.disks[id] = d
	}
	d.users++
	m.mu.Unlock()
	d.turn.Lock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		d.turn.Unlock()
		if d.users--; d.users == 0 && d.origin == nil {
			delete(m.disks, id)
		}
	}()
	return act(name, d)
}

// known tells whether this Manager has a disk of that id, or is busy with one.
func (m *Manager) known(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disks[id] != nil
}
