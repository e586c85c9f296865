package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"wrenn/impl/internal/sparsefile"
	"wrenn/impl/safename"
)

// Create makes the template's disk in dir, of sizeMiB as the guest sees it, or of the template's size when that
// is 0. Afterwards dir/root.disk opens. A disk that is there already and was asked for with the same arguments
// stays as it is. It returns ErrNoTemplate, ErrSize, or ErrNoSpace when the file system is full; after an error
// Remove takes away what there is.
func (s *Store) Create(ctx context.Context, template, dir string, sizeMiB int) error {
	t, err := s.Template(template)
	if err != nil {
		return err
	}
	content, err := s.hashes.of(ctx, t.path)
	if err != nil {
		return err
	}
	bytes := content.Identity.Size
	if sizeMiB == 0 {
		sizeMiB = int((bytes + 1<<20 - 1) >> 20)
	}
	r := Record{
		Version: recordVersion, Mode: s.mode, Template: t.Name, TemplateHash: content.Hash, TemplateBytes: bytes, SizeMiB: sizeMiB,
	}
	if err := r.check(); err != nil {
		return err
	}
	if err := s.intend(r, dir); err != nil {
		return err
	}
	if r.Mode == ModeSnapshot {
		return s.createDevice(ctx, t, r, dir)
	}
	return s.createCopy(ctx, t, r, dir)
}

// intend writes the record, unless a disk of another kind is there.
func (s *Store) intend(r Record, dir string) error {
	if _, err := diskID(dir); err != nil {
		return err
	}
	have, err := Info(dir)
	if err == nil && have == r {
		return nil
	}
	for _, name := range []string{DiskName, CowName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("make a disk in %s: %s of another disk is there", dir, name)
		}
	}
	return r.write(dir)
}

func (s *Store) createCopy(ctx context.Context, t Template, r Record, dir string) error {
	defer s.Fill(t.Name)
	path, part := filepath.Join(dir, DiskName), filepath.Join(dir, partName)
	if _, err := os.Lstat(path); err == nil {
		return checkCopy(r, dir)
	}
	if err := removeFile(part); err != nil {
		return err
	}
	if !s.take(t, part) {
		if err := sparsefile.Copy(ctx, t.path, part); err != nil {
			return err
		}
	}
	return finishCopy(r, dir)
}

// finishCopy gives a whole copy its size and its name.
func finishCopy(r Record, dir string) error {
	part := filepath.Join(dir, partName)
	if err := os.Truncate(part, r.bytes()); err != nil {
		return fmt.Errorf("grow the disk to %d MiB: %w", r.SizeMiB, noSpace(err))
	}
	if err := os.Rename(part, filepath.Join(dir, DiskName)); err != nil {
		return fmt.Errorf("file the disk: %w", err)
	}
	return nil
}

// checkCopy tells whether a copy can be what its record says.
func checkCopy(r Record, dir string) error {
	path := filepath.Join(dir, DiskName)
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("open the disk: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() != r.bytes() {
		return fmt.Errorf("%s is torn or foreign: not a file of %d bytes", path, r.bytes())
	}
	return nil
}

// Attach makes dir/root.disk openable again, after Clone or a restart of the agent or the host. It is not for
// a directory whose files were linked into a snapshot since, because the snapshot would change with the disk.
// What is attached already stays so, under a machine that runs. It returns ErrNoRecord; for a dm-snapshot also
// ErrNoTemplate or ErrTemplateChanged when it has lost what it is over (a copy holds all itself), ErrInvalid,
// ErrShared and ErrUnavailable.
func (s *Store) Attach(ctx context.Context, dir string) error {
	r, err := Info(dir)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.Mode == ModeSnapshot {
		return s.attachDevice(ctx, r, dir)
	}
	return checkCopy(r, dir)
}

// Detach lets go of the kernel's part of the disk, whose data stay. The machine must be gone.
func (s *Store) Detach(ctx context.Context, dir string) error {
	if _, err := diskID(dir); err != nil {
		return err
	}
	if r, err := Info(dir); err == nil && r.Mode == ModeCopy {
		return nil
	}
	return s.detachDevice(ctx, dir)
}

// Remove removes the disk in dir, whole or half made; dir itself may be gone. The machine must be gone.
func (s *Store) Remove(ctx context.Context, dir string) error {
	if err := s.Detach(ctx, dir); err != nil {
		return err
	}
	var errs []error
	for _, name := range []string{DiskName, partName, CowName, CowName + ".part", RecordName + ".part", RecordName} {
		errs = append(errs, removeFile(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// Reclaim removes what an earlier life of the agent left in the kernel of sandboxes other than those in
// livingDirs. Disks that this life has made or attached are left alone, so it may run beside anything.
func (s *Store) Reclaim(ctx context.Context, livingDirs []string) error {
	living := make(map[string]bool, len(livingDirs))
	for _, dir := range livingDirs {
		id, err := diskID(dir)
		if err != nil {
			return err
		}
		living[id] = true
	}
	if s.devices == nil {
		return nil
	}
	removed, err := s.devices.Reclaim(ctx, func(id string) bool { return living[id] })
	if len(removed) > 0 {
		s.cfg.Logger.Info("removed the devices of disks that are nobody's", "disks", removed)
	}
	return err
}

// diskID is the name of the disk in dir: the directory's own, which is the sandbox's id.
func diskID(dir string) (string, error) {
	id := filepath.Base(dir)
	return id, safename.Check("disk", id)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a disk's file: %w", err)
	}
	return nil
}

// noSpace makes a full file system, or a used-up quota, known as ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
