package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"wrenn/impl/sandbox"
)

// disk keeps disks as small files, and in the Host what a kernel would hold of them.
type disk struct{ h *Host }

func (d disk) Template(name string) (sandbox.Template, error) {
	if name != "base" {
		return sandbox.Template{}, fmt.Errorf("%w: %s", sandbox.ErrNoTemplate, name)
	}
	return sandbox.Template{Name: name, VCPUs: 1, MemoryMiB: 256, DiskMiB: 1024, Kernel: "vmlinux", Initramfs: "initramfs"}, nil
}

func (d disk) Create(ctx context.Context, spec sandbox.DiskSpec) error {
	return d.make(ctx, spec, "disk.create", []byte("{}"))
}

func (d disk) Restore(ctx context.Context, spec sandbox.DiskSpec, from string) error {
	content, err := os.ReadFile(filepath.Join(from, sandbox.DiskName))
	if err != nil {
		return err
	}
	return d.make(ctx, spec, "disk.restore", content)
}

func (d disk) make(ctx context.Context, spec sandbox.DiskSpec, act string, content []byte) error {
	path := filepath.Join(spec.Dir, sandbox.DiskName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	d.h.disks[spec.ID], d.h.made[spec.ID] = true, true
	return errors.Join(err, f.Close(), d.h.fail[act], ctx.Err())
}

// Keep refuses a disk that a running machine writes to.
func (d disk) Keep(ctx context.Context, spec sandbox.DiskSpec, to string, last bool) error {
	d.h.mu.Lock()
	if m := d.h.machines[spec.Dir]; m != nil && m.running {
		d.h.breakRule("the disk of " + spec.ID + " was kept while its machine ran")
	}
	d.h.mu.Unlock()
	from, into := filepath.Join(spec.Dir, sandbox.DiskName), filepath.Join(to, sandbox.DiskName)
	if last {
		return errors.Join(os.Link(from, into), d.h.failing("disk.keep"), ctx.Err())
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(into, content, 0o600), d.h.failing("disk.keep"), ctx.Err())
}

func (d disk) Release(_ context.Context, spec sandbox.DiskSpec) error {
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	if d.h.machines[spec.Dir] != nil {
		d.h.breakRule("the disk of " + spec.ID + " was let go of under its machine")
	}
	if err := d.h.fail["disk.release"]; err != nil {
		return err
	}
	delete(d.h.disks, spec.ID)
	if err := os.Remove(filepath.Join(spec.Dir, sandbox.DiskName)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func (d disk) Reclaim(_ context.Context, living []string) error {
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	for id := range maps.Clone(d.h.disks) {
		if !slices.ContainsFunc(living, func(dir string) bool { return filepath.Base(dir) == id }) && !d.h.made[id] {
			delete(d.h.disks, id)
		}
	}
	return nil
}
