// Package kernel gets the guest's kernel from Debian's archive and makes of it the two forms that the
// VMMs boot: the bzImage as it comes, and the uncompressed ELF file for Firecracker.
package kernel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Metapackage is the Debian package that always depends on the newest kernel built for virtual
// machines: virtio as modules, ext4 built in, no hardware drivers.
const Metapackage = "linux-image-cloud-amd64"

// Package is one kernel package at one version.
type Package struct {
	Name    string // linux-image-6.1.0-56-cloud-amd64
	Version string // 6.1.192-2
}

// Release is what uname -r says in a guest that runs the package, and the name of its modules' folder.
func (p Package) Release() string { return strings.TrimPrefix(p.Name, "linux-image-") }

// Resolve asks APT, from its local lists and without network, which kernel the metapackage stands for.
func Resolve(ctx context.Context, metapackage string) (Package, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "--important", metapackage)
	if err != nil {
		return Package{}, fmt.Errorf("resolve %s (if APT does not know it: make deps): %w", metapackage, err)
	}
	name := firstField(out, "Depends:", "linux-image-")
	if name == "" {
		return Package{}, fmt.Errorf("resolve %s: it depends on no kernel image", metapackage)
	}
	out, err = run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return Package{}, fmt.Errorf("look up kernel package %s: %w", name, err)
	}
	version := firstField(out, "Version:", "")
	if version == "" {
		return Package{}, fmt.Errorf("look up kernel package %s: APT names no version", name)
	}
	return Package{Name: name, Version: version}, nil
}

// firstField returns the value of the first line "key value" whose value has the prefix.
func firstField(out []byte, key, prefix string) string {
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		value, found := strings.CutPrefix(strings.TrimSpace(s.Text()), key)
		value = strings.TrimSpace(value)
		if found && strings.HasPrefix(value, prefix) {
			return value
		}
	}
	return ""
}

// Fetch downloads and unpacks the package into dir, which must not exist; it appears whole or not at
// all. Nothing is installed on the host and root is not needed.
func (p Package) Fetch(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make the kernel cache: %w", err)
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".kernel-")
	if err != nil {
		return fmt.Errorf("make the kernel cache: %w", err)
	}
	defer os.RemoveAll(work) //nolint:errcheck // a leftover in the cache goes at the next build's end
	// APT's own sandbox user could not write here; as root it would say so and go on as root anyway.
	_, err = run(ctx, work, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", p.Name+"="+p.Version)
	if err != nil {
		return fmt.Errorf("download %s %s (lists too old? make deps): %w", p.Name, p.Version, err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download %s: %d packages came, want 1", p.Name, len(debs))
	}
	tree := filepath.Join(work, "tree")
	if _, err := run(ctx, "", "dpkg-deb", "-x", debs[0], tree); err != nil {
		return fmt.Errorf("unpack %s: %w", p.Name, err)
	}
	if err := os.Rename(tree, dir); err != nil {
		return fmt.Errorf("put the kernel into the cache: %w", err)
	}
	return nil
}

// Image is the bzImage in the unpacked package at dir.
func (p Package) Image(dir string) string {
	return filepath.Join(dir, "boot", "vmlinuz-"+p.Release())
}

// Modules is the folder of the kernel's modules in the unpacked package at dir.
func (p Package) Modules(dir string) string {
	return filepath.Join(dir, "lib", "modules", p.Release())
}

func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(ee.Stderr))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}
