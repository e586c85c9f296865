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

// Create makes the CoW file, which must not exist or be as a killed Create left it, and restores the disk over
// it. It returns the path by which the disk opens.
func (m *Manager) Create(ctx context.Context, d Disk) (string, error) {
	f, err := os.OpenFile(d.Cow, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", fmt.Errorf("make the CoW file: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() == 0 {
		err = f.Truncate(CowSize(d.Size))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("make the CoW file: %w", err)
	}
	return m.Restore(ctx, d)
}

// Restore makes the disk's device over an existing CoW file and returns the path by which it opens. A device
// that is there already, over that very file, stays, so that it may be repeated while a VMM has it open; so
// does what was half made. It returns ErrInvalid for a CoW that has been full, ErrCorrupt for one that is
// none, and ErrForeign where somebody else has the name.
func (m *Manager) Restore(ctx context.Context, d Disk) (string, error) {
	err := m.with(d.ID, func(name string, held *disk) error { return m.restore(ctx, name, d, held) })
	if err != nil {
		return "", fmt.Errorf("restore disk %s: %w", d.ID, err)
	}
	return filepath.Join(nodeDir, namePrefix+d.ID), nil
}

func (m *Manager) restore(ctx context.Context, name string, d Disk, held *disk) (err error) {
	if d.Size <= 0 || d.Size%sector != 0 || !filepath.IsAbs(d.Cow) {
		return fmt.Errorf("a disk of %d bytes in %q", d.Size, d.Cow)
	}
	cow, err := openCow(d.Cow, CowSize(d.Size))
	if err != nil {
		return err
	}
	defer cow.Close()
	if _, err := readHeader(cow); err != nil {
		return fmt.Errorf("%s: %w", d.Cow, err)
	}
	if kept, err := m.keep(ctx, name, d, cow, held); kept || err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	origin, err := m.origins.Acquire(ctx, d.Origin)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.removeDevices(context.WithoutCancel(ctx), name, mark(d.Cow)), origin.Release())
		}
	}()
	if origin.Bytes > d.Size {
		return fmt.Errorf("the origin %s has %d bytes, more than the disk's %d", d.Origin, origin.Bytes, d.Size)
	}
	base := origin.Number
	if origin.Bytes < d.Size {
		if base, err = m.device(name+originSuffix, mark(d.Cow), true, originTable(uint64(d.Size/sector), base, uint64(origin.Bytes/sector))); err != nil {
			return err
		}
	}
	l, err := m.loops.attach(ctx, cow, false)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // the table has it open
	dev, err := m.device(name, mark(d.Cow), false, snapshotTable(uint64(d.Size/sector), base, l.number))
	if err != nil {
		return err
	}
	if err := m.refuseInvalid(name); err != nil {
		return err
	}
	held.origin = origin
	return putNode(name, dev)
}

func openCow(path string, want int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open the CoW file: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != want) {
		err = fmt.Errorf("%w: %s has %d bytes, not %d", ErrCorrupt, path, info.Size(), want)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// keep tells whether the device is there as it should be; one that is not is removed.
func (m *Manager) keep(ctx context.Context, name string, d Disk, cow *os.File, held *disk) (bool, error) {
	dev, err := m.control.info(name)
	if errors.Is(err, errNoDevice) {
		// What is left of a killed one is the device underneath.
		return false, m.removeDevices(ctx, name, mark(d.Cow))
	}
	if err != nil {
		return false, err
	}
	if dev.uuid != uuid(m.owner, mark(d.Cow), name) {
		return false, fmt.Errorf("%w: %s", ErrForeign, name)
	}
	if !dev.active || !m.over(name, cow) {
		return false, m.removeDevices(ctx, name, mark(d.Cow))
	}
	if dev.suspended {
		if dev, err = m.control.resume(name); err != nil {
			return false, err
		}
	}
	if err := m.refuseInvalid(name); err != nil {
		return false, err
	}
	if held.origin == nil {
		// The template may have been replaced since. The device keeps its file alive; all that is lost is sharing.
		held.origin, err = m.origins.Acquire(ctx, d.Origin)
		if err != nil {
			held.origin = &Hold{registry: m.origins}
		}
	}
	return true, putNode(name, dev.number)
}

// Attached tells whether the disk has a device, over its very CoW file. The origin is not looked at.
func (m *Manager) Attached(d Disk) bool {
	name, err := Name(d.ID)
	if err != nil {
		return false
	}
	dev, err := m.control.info(name)
	if err != nil || !dev.active || dev.uuid != uuid(m.owner, mark(d.Cow), name) {
		return false
	}
	cow, err := openCow(d.Cow, CowSize(d.Size))
	if err != nil {
		return false
	}
	defer cow.Close()
	return m.over(name, cow)
}

// over tells whether the device keeps what is written in the file cow.
func (m *Manager) over(name string, cow *os.File) bool {
	file, err := m.cowFile(name)
	if err != nil {
		return false
	}
	id, err := idOf(cow)
	return err == nil && id == file
}

// cowFile is the file under the device's CoW.
func (m *Manager) cowFile(name string) (fileID, error) {
	table, err := m.control.table(name)
	if err != nil {
		return fileID{}, err
	}
	if len(table) != 1 || table[0].kind != "snapshot" {
		return fileID{}, fmt.Errorf("device %s is no snapshot", name)
	}
	fields := strings.Fields(table[0].params)
	if len(fields) < 2 {
		return fileID{}, fmt.Errorf("device %s has the table %q", name, table[0].params)
	}
	link, err := os.Readlink("/sys/dev/block/" + fields[1])
	if err != nil {
		return fileID{}, err
	}
	f, err := os.Open(filepath.Join("/dev", filepath.Base(link)))
	if err != nil {
		return fileID{}, err
	}
	defer f.Close()
	file, _, _, err := m.loops.backing(f)
	return file, err
}

// device makes one of ours with that table, and returns its number.
func (m *Manager) device(name, place string, readOnly bool, table []target) (uint64, error) {
	if err := m.control.create(name, uuid(m.owner, place, name)); err != nil {
		return 0, err
	}
	if err := m.control.load(name, readOnly, table); err != nil {
		return 0, err
	}
	dev, err := m.control.resume(name)
	return dev.number, err
}

func (m *Manager) refuseInvalid(name string) error {
	s, err := m.status(name)
	if err == nil && s.Invalid {
		err = fmt.Errorf("%w: %s", ErrInvalid, name)
	}
	return err
}

func (m *Manager) status(name string) (Status, error) {
	targets, err := m.control.status(name)
	if err != nil {
		return Status{}, err
	}
	if len(targets) != 1 || targets[0].kind != "snapshot" {
		return Status{}, fmt.Errorf("device %s is no snapshot", name)
	}
	return parseStatus(targets[0].params)
}

// Status returns ErrNotAttached when the disk has no device.
func (m *Manager) Status(id string) (Status, error) {
	name, err := Name(id)
	if err != nil {
		return Status{}, err
	}
	s, err := m.status(name)
	if errors.Is(err, errNoDevice) {
		err = fmt.Errorf("%w: %s", ErrNotAttached, id)
	}
	return s, err
}

// Flush brings all that was written to the disk into its CoW file, though not to the file's own disk: what the
// kernel still holds for the device, and what is under way. It returns ErrNotAttached, or ErrInvalid when the
// CoW is not whole.
func (m *Manager) Flush(ctx context.Context, d Disk) error {
	err := m.with(d.ID, func(name string, _ *disk) error { return m.flush(ctx, name, mark(d.Cow)) })
	if err != nil {
		return fmt.Errorf("flush disk %s: %w", d.ID, err)
	}
	return nil
}

func (m *Manager) flush(ctx context.Context, name, place string) error {
	dev, err := m.control.info(name)
	if errors.Is(err, errNoDevice) {
		return ErrNotAttached
	}
	if err != nil {
		return err
	}
	if dev.uuid != uuid(m.owner, place, name) {
		return ErrForeign
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if dev.suspended { // by a flush that was killed
		if _, err := m.control.resume(name); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join("/dev", dev.node()), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closeErr := f.Close(); err != nil || closeErr != nil {
		return errors.Join(m.refuseInvalid(name), err, closeErr)
	}
	if err := m.control.suspend(name); err != nil {
		return err
	}
	if _, err := m.control.resume(name); err != nil {
		return err
	}
	return m.refuseInvalid(name)
}

// Remove removes the disk's devices, whole or half made, and with them their loop devices. Of the Disk it wants
// ID and Cow; the file stays, and may be gone already. While something has the device open it waits, at most
// 5 s, and returns an error that is EBUSY. It is idempotent. It returns ErrForeign, having done nothing, for a
// device of that name which is not this disk's.
func (m *Manager) Remove(ctx context.Context, d Disk) error {
	err := m.with(d.ID, func(name string, held *disk) error {
		if err := m.removeDevices(ctx, name, mark(d.Cow)); err != nil {
			return err
		}
		if held.origin == nil {
			return nil
		}
		err := held.origin.Release()
		held.origin = nil
		return err
	})
	if err != nil {
		return fmt.Errorf("remove disk %s: %w", d.ID, err)
	}
	return nil
}

// removeDevices removes the snapshot first, since it has the other open. With a place they have to be of the disk
// there; without, of this owner.
func (m *Manager) removeDevices(ctx context.Context, name, place string) error {
	for _, n := range []string{name, name + originSuffix} {
		dev, err := m.control.info(n)
		if errors.Is(err, errNoDevice) {
			if err := dropNode(n); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		_, ours := ownID(m.owner, n, dev.uuid)
		if !ours || place != "" && dev.uuid != uuid(m.owner, place, n) {
			return fmt.Errorf("%w: %s", ErrForeign, n)
		}
		if err := m.removeDevice(ctx, n, dev); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) removeDevice(ctx context.Context, name string, dev device) error {
	if dev.suspended && dev.active {
		// What waits at a suspended device would make its removal wait for ever.
		if _, err := m.control.resume(name); err != nil {
			return err
		}
	}
	err := retryBusy(ctx, func() error { return m.control.remove(name) })
	if err != nil && !errors.Is(err, errNoDevice) {
		return err
	}
	return dropNode(name)
}
