package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"wrenn/impl/internal/sparsefile"
)

// dataName is the file that the disk's data are in.
func (r Record) dataName() string {
	if r.Mode == ModeSnapshot {
		return CowName
	}
	return DiskName
}

// Link puts the disk in dir into snapshotDir as hard links, and syncs the files, though not the directory. The
// machine must be paused and may not write to the disk again unless the links are removed before. What is
// linked already stays.
func (s *Store) Link(ctx context.Context, dir, snapshotDir string) error {
	r, err := s.settle(ctx, dir)
	if err != nil {
		return err
	}
	for _, name := range []string{r.dataName(), RecordName} {
		from, to := filepath.Join(dir, name), filepath.Join(snapshotDir, name)
		if err := syncFile(from); err != nil {
			return err
		}
		if err := os.Link(from, to); err != nil && !sameFile(from, to) {
			return fmt.Errorf("link the disk into its snapshot: %w", noSpace(err))
		}
	}
	return ctx.Err()
}

// Clone makes dir's disk an independent copy of that in from, a snapshot's directory, or a sandbox's whose
// machine is paused. The source stays as it is, attached or not. The copy is neither synced (Sync) nor
// attached (Attach). After an error Remove takes away what there is.
func (s *Store) Clone(ctx context.Context, from, dir string) error {
	r, err := s.settle(ctx, from)
	if err != nil {
		return err
	}
	if _, err := diskID(dir); err != nil {
		return err
	}
	data := filepath.Join(dir, r.dataName())
	if _, err := os.Lstat(data); err == nil {
		have, err := Info(dir)
		if err != nil || have != r {
			return errors.Join(fmt.Errorf("clone a disk to %s: another is there", dir), err)
		}
		return nil
	}
	if err := s.intend(r, dir); err != nil {
		return err
	}
	if err := removeFile(data + ".part"); err != nil {
		return err
	}
	if err := sparsefile.Copy(ctx, filepath.Join(from, r.dataName()), data+".part"); err != nil {
		return err
	}
	if err := os.Rename(data+".part", data); err != nil {
		return fmt.Errorf("file a cloned disk: %w", err)
	}
	s.writeBack(data)
	return nil
}

// writeBack has the kernel begin to write a clone, in the background: it would within half a minute anyway
// (vm.dirty_expire_centisecs), and a pause before that need not wait for a whole disk. Whoever wants it durable
// syncs it, and learns of errors then.
func (s *Store) writeBack(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.wg.Go(func() {
		f, err := os.Open(path)
		if err != nil {
			return
		}
		_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		_ = f.Close()
	})
}

// Sync makes the contents of the disk's files in dir durable, though not their names: the directory is for the
// caller to sync, once.
func (s *Store) Sync(ctx context.Context, dir string) error {
	r, err := s.settle(ctx, dir)
	if err != nil {
		return err
	}
	return errors.Join(syncFile(filepath.Join(dir, r.dataName())), syncFile(filepath.Join(dir, RecordName)))
}

// settle brings all that was written to the disk in dir into its files, and refuses a disk that is not whole.
func (s *Store) settle(ctx context.Context, dir string) (Record, error) {
	r, err := Info(dir)
	if err != nil {
		return r, err
	}
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if r.Mode == ModeSnapshot {
		return r, s.settleDevice(ctx, r, dir)
	}
	return r, checkCopy(r, dir)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync a disk's file: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync a disk's file: %w", noSpace(err))
	}
	return nil
}

func sameFile(a, b string) bool {
	x, err := os.Lstat(a)
	if err != nil {
		return false
	}
	y, err := os.Lstat(b)
	return err == nil && os.SameFile(x, y)
}
