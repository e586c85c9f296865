package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"wrenn/impl/rootfs"
	"wrenn/impl/sandbox"
)

// diskPart is the real sandbox.Disk.
type diskPart struct {
	store             *rootfs.Store
	kernel, initramfs string
}

func newDiskPart(cfg Config, store *rootfs.Store) diskPart {
	return diskPart{store: store, kernel: kernelPath(cfg.ImageDir), initramfs: initramfsPath(cfg.ImageDir)}
}

// kernelPath is the uncompressed kernel, which both VMMs take.
func kernelPath(imageDir string) string { return filepath.Join(imageDir, "vmlinux") }

func initramfsPath(imageDir string) string { return filepath.Join(imageDir, "initramfs.cpio.gz") }

func (d diskPart) Template(name string) (sandbox.Template, error) {
	t, err := d.store.Template(name)
	if errors.Is(err, rootfs.ErrNoTemplate) {
		return sandbox.Template{}, fmt.Errorf("%w: %w", sandbox.ErrNoTemplate, err)
	}
	if err != nil {
		return sandbox.Template{}, err
	}
	return sandbox.Template{
		Name: t.Name, VCPUs: t.VCPUs, MemoryMiB: t.MemoryMiB, DiskMiB: t.DiskMiB, Kernel: d.kernel, Initramfs: d.initramfs,
	}, nil
}

func (d diskPart) Create(ctx context.Context, spec sandbox.DiskSpec) error {
	return noDisk(d.store.Create(ctx, spec.Template, spec.Dir, spec.SizeMiB))
}

func (d diskPart) Restore(ctx context.Context, spec sandbox.DiskSpec, from string) error {
	if err := d.store.Clone(ctx, from, spec.Dir); err != nil {
		return noDisk(err)
	}
	return noDisk(d.store.Attach(ctx, spec.Dir))
}

func (d diskPart) Keep(ctx context.Context, spec sandbox.DiskSpec, to string, last bool) error {
	if last {
		return noDisk(d.store.Link(ctx, spec.Dir, to))
	}
	return noDisk(d.store.Clone(ctx, spec.Dir, to))
}

func (d diskPart) Release(ctx context.Context, spec sandbox.DiskSpec) error {
	return d.store.Remove(ctx, spec.Dir)
}

func (d diskPart) Reclaim(ctx context.Context, living []string) error {
	return d.store.Reclaim(ctx, living)
}

// noDisk makes a full file system known to the domain.
func noDisk(err error) error {
	if errors.Is(err, rootfs.ErrNoSpace) {
		return fmt.Errorf("%w: %w", sandbox.ErrNoDisk, err)
	}
	return err
}
