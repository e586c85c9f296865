package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wrenn/guest/rootfs"
)

// A payload is what the suites need in the machine, as a read-only disk: under emulation a disk brings in
// half a second what takes minutes by SSH. In the machine it lies under an overlay that takes what tests
// write, at treeDir, with the layout of the repository.
const (
	treeDir     = "/wrenn"
	payloadName = "payload"
	// payloadMiB is the apparent size of the disk; the programs and templates take some 500 MiB.
	payloadMiB = 8192
	// payloadSerial is by which the disk is found in the machine; at most 20 bytes.
	payloadSerial = "wrenn-payload"
)

// contents are the files and folders of the repository that go in whole. build/bin holds what `make build`
// made, the rest of build/ what `make image` did.
var contents = []string{
	"go.mod", "Makefile", "build/bin", "build/fault", "build/test/procvmm", "build/test/drift", "build/image/image.json", "build/image/vmlinux", "build/image/vmlinuz",
	"build/image/initramfs.cpio.gz", "build/image/templates", "e2e/sdk",
}

// suite is a package of tests, built here and run there.
type suite struct {
	dir string // of the package, relative to go.mod
	// tags build it.
	tags string
	// limit bounds it, so that a hanging suite says where it hangs.
	limit time.Duration
	// emulated names the tests that are run where the machine is emulated and everything takes ten times as
	// long: those for which guests nested under KVM make a difference. Empty stands for none.
	emulated string
}

func (s suite) pkg() string    { return "wrenn/" + s.dir }
func (s suite) binary() string { return filepath.Join(s.dir, filepath.Base(s.dir)+".test") }

// pack builds the test programs and makes the disk; it returns the disk's path.
func (c *config) pack(ctx context.Context, suites []suite) (disk string, err error) {
	start := time.Now()
	dir := c.path(payloadName)
	tree := filepath.Join(dir, "tree")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tree)) }()
	for _, s := range suites {
		if err := c.tool(ctx, "go", "test", "-c", "-tags", s.tags, "-o", filepath.Join(tree, s.binary()), "./"+s.dir); err != nil {
			return "", err
		}
	}
	// test2json turns a test program's output into what gotestsum reads; it is part of Go, and Go is not in
	// the machine.
	for program, pkg := range map[string]string{
		"bin/test2json": "cmd/test2json", "bin/gotestsum": "gotest.tools/gotestsum", "test/procvmm": "wrenn/e2e/harness/procvmm", "test/drift": "wrenn/guest/drift",
	} {
		if err := c.tool(ctx, "go", "build", "-o", filepath.Join(c.root, "build", program), pkg); err != nil {
			return "", err
		}
	}
	copied := append([]string{"-aL", "--parents", "--reflink=auto", "--sparse=auto"}, contents...)
	if err := c.tool(ctx, "cp", append(copied, tree)...); err != nil {
		return "", fmt.Errorf("%w (is all built? make build-fault image sdk)", err)
	}
	if vmm := os.Getenv(firecrackerEnv); vmm != "" {
		if err := c.tool(ctx, "cp", "--", vmm, filepath.Join(tree, "build/bin/firecracker")); err != nil {
			return "", fmt.Errorf("take the Firecracker that %s names: %w", firecrackerEnv, err)
		}
	}
	disk = filepath.Join(dir, "disk.ext4")
	if err := rootfs.WriteDisk(ctx, tree, disk, payloadName, payloadMiB); err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "vm: test programs built and packed in %.1f s\n", time.Since(start).Seconds())
	return disk, nil
}

// firecrackerEnv names a Firecracker of this machine. In the machine it lies beside the other programs, where
// an agent looks for it before it tries its stand-in.
const firecrackerEnv = "FIRECRACKER_BIN"

// tool runs a program in the repository's folder; what it says is shown when it fails.
func (c *config) tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.root
	// The machine has other libraries than this one may.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// domain is the machine's name in libvirt: Vagrant joins the folder's and the machine's.
const domain = "vagrant_wrenn"

// mountScript runs in the machine. The disks are there a moment after they were attached.
//
// Templates and the tests' folders (TMPDIR) lie together on a file system with reflinks, as a host's should:
// by emulation a copy of a template's disk takes 10 s.
const mountScript = `set -eu
payload=/dev/disk/by-id/virtio-` + payloadSerial + ` scratch=/dev/disk/by-id/virtio-wrenn-scratch
for i in $(seq 300); do [ -b $payload ] && [ -b $scratch ] && break; sleep 0.1; done
mkdir -p /run/payload ` + scratchDir + " " + treeDir + `
mount -o ro $payload /run/payload
mkfs.xfs -q -f -m reflink=1 $scratch
mount $scratch ` + scratchDir + `
cd ` + scratchDir + `
mkdir -p upper work tmp
cp -r --sparse=always /run/payload/build/image/templates .
mount -t overlay -o lowerdir=/run/payload,upperdir=` + scratchDir + `/upper,workdir=` + scratchDir + `/work tree ` + treeDir + `
mount --bind templates ` + treeDir + `/build/image/templates
`

// unmountScript takes the payload of an earlier run, and all that it has left, out of use.
const unmountScript = `umount -R ` + treeDir + ` 2>/dev/null; umount -R ` + scratchDir + ` 2>/dev/null; umount /run/payload 2>/dev/null; true`

// scratchDir is what a run may write to.
const scratchDir = "/scratch"

// attach gives the machine the payload's disk in the place of an earlier one.
func (m *vm) attach(ctx context.Context, disk string) error {
	if m.found {
		if err := m.ssh(ctx, nil, "sh -c "+quote(unmountScript)).Run(); err != nil {
			return fmt.Errorf("take the last run's files out of the machine: %w", err)
		}
		if out, err := m.ground.Command(ctx, "virsh", "-q", "detach-disk", domain, "vdc").CombinedOutput(); err != nil && !strings.Contains(string(out), "No disk found") {
			return fmt.Errorf("detach the last run's disk: %w: %s", err, out)
		}
	}
	cmd := m.ground.Command(ctx, "virsh", "-q", "attach-disk", domain, disk, "vdc",
		"--targetbus", "virtio", "--driver", "qemu", "--subdriver", "raw", "--mode", "readonly", "--serial", payloadSerial)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("attach the payload's disk: %w: %s", err, out)
	}
	if out, err := m.ssh(ctx, nil, "sh -c "+quote(mountScript)).CombinedOutput(); err != nil {
		return fmt.Errorf("mount the payload in the machine: %w: %s", err, out)
	}
	return nil
}
