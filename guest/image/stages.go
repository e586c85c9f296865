package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"wrenn/guest/initramfs"
	"wrenn/guest/kernel"
	"wrenn/guest/rootfs"
)

// kernel brings vmlinuz and vmlinux into the output folder.
func (b *builder) kernel(ctx context.Context) (kernel.Package, error) {
	p, err := kernel.Resolve(ctx, kernel.Metapackage)
	if err != nil {
		return p, err
	}
	b.report.Kernel = p.Release()
	id := p.Name + "_" + p.Version
	tree, err := b.cached("kernel package", id, func(path string) error { return p.Fetch(ctx, path) })
	if err != nil {
		return p, err
	}
	elf, err := b.cached("kernel ELF", "vmlinux-"+id, func(path string) error {
		image, err := os.ReadFile(p.Image(tree))
		if err != nil {
			return fmt.Errorf("read the kernel: %w", err)
		}
		var out bytes.Buffer
		if err := kernel.ExtractELF(ctx, image, &out); err != nil {
			return err
		}
		return b.writeFile(path, out.Bytes())
	})
	if err != nil {
		return p, err
	}
	if err := b.publish(p.Image(tree), filepath.Join(b.Out, "vmlinuz")); err != nil {
		return p, err
	}
	return p, b.publish(elf, filepath.Join(b.Out, "vmlinux"))
}

// initramfs is made anew each time, which takes less than finding out whether it must be, and written
// if it differs.
func (b *builder) initramfs(ctx context.Context, p kernel.Package) error {
	start := time.Now()
	init, err := b.program(ctx, "wrenn/guest/wrenn-init")
	if err != nil {
		return err
	}
	modules, err := initramfs.Modules(ctx, p.Modules(b.cache(p.Name+"_"+p.Version)), initramfs.Wanted)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	// Compressed for size alone: unpacking costs an emulated guest 40 ms more than a plain archive.
	zip := gzip.NewWriter(&archive)
	if err := initramfs.Write(zip, init.data, modules); err != nil {
		return err
	}
	if err := zip.Close(); err != nil {
		return fmt.Errorf("compress the initramfs: %w", err)
	}
	path := filepath.Join(b.Out, "initramfs.cpio.gz")
	have, err := os.ReadFile(path)
	same := err == nil && bytes.Equal(have, archive.Bytes())
	if !same {
		if err := b.writeFile(path, archive.Bytes()); err != nil {
			return err
		}
	}
	b.done("initramfs", fmt.Sprintf("%d modules", len(modules)), start, same)
	return nil
}

// binary is a guest program.
type binary struct {
	path   string
	data   []byte
	reused bool // the build changed nothing
}

// daemon is envd as it goes into the disks.
type daemon struct {
	path, version, hash string
}

// envd is the guest daemon, as given or built.
func (b *builder) envd(ctx context.Context) (daemon, error) {
	start, bin := time.Now(), binary{path: b.Envd, reused: true}
	var err error
	if b.Envd == "" {
		bin, err = b.program(ctx, "wrenn/impl/cmd/envd")
	} else {
		bin.data, err = os.ReadFile(b.Envd)
	}
	if err != nil {
		return daemon{}, fmt.Errorf("get envd: %w", err)
	}
	out, err := exec.CommandContext(ctx, bin.path, "--version").Output()
	if err != nil {
		return daemon{}, fmt.Errorf("ask %s for its version: %w", bin.path, err)
	}
	sum := sha256.Sum256(bin.data)
	e := daemon{path: bin.path, version: versionPattern.FindString(string(out)), hash: hex.EncodeToString(sum[:])}
	if e.version == "" {
		return daemon{}, fmt.Errorf("ask %s for its version: %q names none", bin.path, out)
	}
	b.report.Envd = e.version
	b.done("envd", e.version, start, bin.reused)
	return e, nil
}

var versionPattern = regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+`)

// program builds a static Go program for the guest. The Go build cache makes a second build cheap, and
// without paths and commit ids in it the binary changes only when its sources do.
func (b *builder) program(ctx context.Context, pkg string) (binary, error) {
	name := "bin-" + filepath.Base(pkg)
	b.keep[name] = true
	path := b.cache(name)
	// Where there is none yet, everything differs from what is read here.
	before, _ := os.ReadFile(path)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return binary{}, fmt.Errorf("build %s: %w: %s", pkg, err, strings.TrimSpace(string(out)))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return binary{}, fmt.Errorf("read what %s was built to: %w", pkg, err)
	}
	return binary{path: path, data: data, reused: bytes.Equal(before, data)}, nil
}

// template brings one recipe's disk and description into the output folder.
func (b *builder) template(ctx context.Context, r rootfs.Recipe, envd daemon, release string) error {
	stageKey, err := rootfs.Key(ctx, r)
	if err != nil {
		return err
	}
	tree, err := b.cached("template "+r.Name+" system", "system-"+r.Name+"-"+stageKey[:keyLength],
		func(path string) error { return rootfs.Stage(ctx, r, path) })
	if err != nil {
		return err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s", stageKey, envd.hash, rootfs.FormatKey(r.DiskMiB)))
	key := hex.EncodeToString(sum[:])
	disk, err := b.cached("template "+r.Name+" disk", "disk-"+r.Name+"-"+key[:keyLength],
		func(path string) error { return rootfs.WriteImage(ctx, tree, envd.path, path, key, r.DiskMiB) })
	if err != nil {
		return err
	}
	info, err := os.Stat(disk)
	if err != nil {
		return fmt.Errorf("look at the disk of template %s: %w", r.Name, err)
	}
	dir := filepath.Join(b.Out, "templates", r.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("publish template %s: %w", r.Name, err)
	}
	if err := b.publish(disk, filepath.Join(dir, "rootfs.ext4")); err != nil {
		return err
	}
	return b.writeJSON(filepath.Join(dir, "template.json"), Template{
		Name: r.Name, VCPUs: r.VCPUs, MemoryMiB: r.MemoryMiB, DiskMiB: r.DiskMiB,
		EnvdVersion: envd.version, KernelVersion: release,
		ContentHash: key, BuiltAt: info.ModTime().UTC().Truncate(time.Second),
	})
}

// keyLength is how many hexadecimal digits of a key a cache entry's name carries: 64 bits are ample
// for the handful of entries of one folder.
const keyLength = 16
