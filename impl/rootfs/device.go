package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"wrenn/impl/devicemapper"
)

var (
	// ErrInvalid is returned for a dm-snapshot that the kernel has given up, since a write could not be kept:
	// the host's file system was full. The guest gets errors for all that it reads, and nothing brings the disk
	// back.
	ErrInvalid = devicemapper.ErrInvalid
	// ErrShared is returned when a disk is to be attached whose data are part of a snapshot: clone it.
	ErrShared = errors.New("disk is part of a snapshot")
)

// device says what the kernel makes the disk in dir of.
func device(r Record, dir, origin string) devicemapper.Disk {
	if abs, err := filepath.Abs(dir); err == nil { // else the device is refused
		dir = abs
	}
	return devicemapper.Disk{ID: filepath.Base(dir), Origin: origin, Size: r.bytes(), Cow: filepath.Join(dir, CowName)}
}

func (s *Store) createDevice(ctx context.Context, t Template, r Record, dir string) error {
	path, err := s.devices.Create(ctx, device(r, dir, t.path))
	if err != nil {
		return noSpace(err)
	}
	// Now the file that was hashed and the one that is used are both held: they have to be the same.
	if now, err := s.hashes.of(ctx, t.path); err != nil || now.Hash != r.TemplateHash {
		return errors.Join(fmt.Errorf("%w: %s: it was replaced meanwhile", ErrTemplateChanged, t.Name), err)
	}
	return linkDisk(path, dir)
}

// attachDevice makes the device again, unless it is there: a machine that runs goes on with what it has, even
// when the template has been replaced since.
func (s *Store) attachDevice(ctx context.Context, r Record, dir string) error {
	if s.devices == nil {
		return fmt.Errorf("%w: the disk in %s is a dm-snapshot", ErrUnavailable, dir)
	}
	d := device(r, dir, "")
	if !s.devices.Attached(d) {
		if err := unshared(d.Cow); err != nil {
			return err
		}
		t, err := s.origin(ctx, r)
		if err != nil {
			return fmt.Errorf("the disk in %s: %w", dir, err)
		}
		d.Origin = t.path
	}
	path, err := s.devices.Restore(ctx, d)
	if err != nil {
		return err
	}
	return linkDisk(path, dir)
}

// origin finds what the disk is over, and refuses anything else.
func (s *Store) origin(ctx context.Context, r Record) (Template, error) {
	t, err := s.Template(r.Template)
	if err != nil {
		return t, err
	}
	now, err := s.hashes.of(ctx, t.path)
	if err != nil {
		return t, err
	}
	if now.Hash != r.TemplateHash || now.Identity.Size != r.TemplateBytes {
		return t, fmt.Errorf("%w: %s was %s and is %s", ErrTemplateChanged, r.Template, r.TemplateHash, now.Hash)
	}
	return t, nil
}

// unshared refuses a file with a second name: that is in a snapshot, which would change with the disk.
func unshared(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("open the disk: %w", &os.PathError{Op: "lstat", Path: path, Err: err})
	}
	if st.Nlink > 1 {
		return fmt.Errorf("%w: %s", ErrShared, path)
	}
	return nil
}

// linkDisk makes dir/root.disk lead to the device.
func linkDisk(device, dir string) error {
	path, part := filepath.Join(dir, DiskName), filepath.Join(dir, partName)
	if have, err := os.Readlink(path); err == nil && have == device {
		return nil
	}
	if err := removeFile(part); err != nil {
		return err
	}
	if err := os.Symlink(device, part); err != nil {
		return fmt.Errorf("link the disk: %w", noSpace(err))
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("link the disk: %w", err)
	}
	return nil
}

// detachDevice removes the device, if there is one, and the link to it.
func (s *Store) detachDevice(ctx context.Context, dir string) error {
	if s.devices == nil {
		return nil
	}
	// A device of that name that is not this disk's, like that of a sandbox with the name of a snapshot, is left.
	if err := s.devices.Remove(ctx, device(Record{}, dir, "")); err != nil && !errors.Is(err, devicemapper.ErrForeign) {
		return err
	}
	path := filepath.Join(dir, DiskName)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unlink the disk: %w", err)
	}
	return removeFile(path)
}

// settleDevice brings what was written to the disk into its CoW file.
func (s *Store) settleDevice(ctx context.Context, r Record, dir string) error {
	d := device(r, dir, "")
	if s.devices != nil && s.devices.Attached(d) {
		if err := s.devices.Flush(ctx, d); err != nil {
			return noSpace(err)
		}
	}
	return devicemapper.CheckCow(d.Cow, d.Size)
}

// Health returns ErrInvalid when the disk in dir, which is attached, has been given up by the kernel.
func (s *Store) Health(dir string) error {
	r, err := Info(dir)
	if err != nil || r.Mode != ModeSnapshot || s.devices == nil {
		return err
	}
	status, err := s.devices.Status(filepath.Base(dir))
	if err == nil && status.Invalid {
		err = fmt.Errorf("%w: the disk in %s", ErrInvalid, dir)
	}
	return err
}
