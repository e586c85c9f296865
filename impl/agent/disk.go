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

func (d diskPart) Create(ctx context.Context, template, dir string, sizeMiB int) error {
	err := d.store.Create(ctx, template, dir, sizeMiB)
	if errors.Is(err, rootfs.ErrNoSpace) {
		return fmt.Errorf("%w: %w", sandbox.ErrNoDisk, err)
	}
	return err
}

func (d diskPart) Remove(ctx context.Context, dir string) error { return d.store.Remove(ctx, dir) }
