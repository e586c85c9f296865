package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Reclaim removes the devices of this owner that an earlier life has left: not those of ids that living says yes
// to, nor those that this Manager has made. It returns the ids, also of what it failed to remove. It may run
// beside anything. Loop devices of ours that nothing uses are cleared.
func (m *Manager) Reclaim(ctx context.Context, living func(id string) bool) ([]string, error) {
	ids, err := m.Leftovers(living)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return removed, errors.Join(append(errs, err)...)
		}
		err := m.with(id, func(name string, d *disk) error {
			if d.origin != nil {
				return nil // made since
			}
			removed = append(removed, id)
			return m.removeDevices(ctx, name, "")
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("remove the leftover disk %s: %w", id, err))
		}
	}
	errs = append(errs, m.dropDangling(), m.clearLoops())
	return removed, errors.Join(errs...)
}

// Leftovers lists the ids of disks of this owner that have devices, and are neither living nor this Manager's.
func (m *Manager) Leftovers(living func(id string) bool) ([]string, error) {
	names, err := m.control.names()
	if err != nil {
		return nil, err
	}
	var ids []string
	seen := make(map[string]bool)
	for _, name := range names {
		if !strings.HasPrefix(name, namePrefix) {
			continue
		}
		dev, err := m.control.info(name)
		if errors.Is(err, errNoDevice) {
			continue
		}
		if err != nil {
			return nil, err
		}
		id, ours := ownID(m.owner, name, dev.uuid)
		if ours && !seen[id] && !living(id) && !m.known(id) {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// dropDangling removes names of ours that lead to no device.
func (m *Manager) dropDangling() error {
	links, err := filepath.Glob(filepath.Join(nodeDir, namePrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		name := filepath.Base(l)
		if _, err := m.control.info(name); !errors.Is(err, errNoDevice) {
			continue
		}
		id := strings.TrimSuffix(strings.TrimPrefix(name, namePrefix), originSuffix)
		if _, err := Name(id); err != nil {
			continue
		}
		errs = append(errs, m.with(id, func(string, *disk) error {
			if _, err := m.control.info(name); errors.Is(err, errNoDevice) {
				return dropNode(name)
			}
			return nil
		}))
	}
	return errors.Join(errs...)
}

// clearLoops clears our loop devices that are not in use. There are none unless something had one open when it
// should have cleared itself.
func (m *Manager) clearLoops() error {
	m.origins.mu.Lock()
	defer m.origins.mu.Unlock()
	m.loops.mu.Lock()
	defer m.loops.mu.Unlock()
	paths, err := boundLoops()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range paths {
		holders, err := os.ReadDir(filepath.Join("/sys/block", filepath.Base(p), "holders"))
		if err != nil || len(holders) > 0 {
			continue
		}
		if err := m.clearLoop(p); err != nil {
			errs = append(errs, fmt.Errorf("clear %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// clearLoop relies on what LOOP_CLR_FD does to a device that others have open: it clears itself after them.
func (m *Manager) clearLoop(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nil // it went away
	}
	defer f.Close()
	id, _, ours, err := m.loops.backing(f)
	if err != nil || !ours || m.origins.held[id] != nil {
		return nil // free by now, somebody else's, or in use
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
}
