// Package box makes the Vagrant box of the suites: a Debian system for the libvirt provider, built from
// Debian's packages on this machine, with nothing taken from a catalogue of boxes.
//
// The disk has one file system and no boot loader: kernel and initramfs lie beside the box, and the
// hypervisor is told to boot them.
package box

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wrenn/guest/rootfs"
)

// Config says what to build and where to.
type Config struct {
	Recipe   string    // folder of the recipe, in the format of guest/templates
	Dir      string    // output folder, made if missing; boxes of earlier recipes in it go
	Progress io.Writer // one line per stage, for people
}

// Box is a built box.
type Box struct {
	// Version changes with what the box was made of.
	Version string
	// File is what `vagrant box add` takes; Kernel and Initrd are what boots it.
	File, Kernel, Initrd string
	// PrivateKey opens the account vagrant, which may do everything by sudo.
	PrivateKey string
	// MemoryMiB and VCPUs are what a machine of it should have.
	MemoryMiB, VCPUs int
}

// Names in the output folder.
const (
	keyName  = "ssh-key"
	fileName = "wrenn.box"
)

// Build makes the box, or finds the one that was made of the same recipe, tools and key. Making it takes two
// minutes and, because of the ownership of the files, root.
func Build(ctx context.Context, c Config) (Box, error) {
	b, err := build(ctx, c)
	if err != nil {
		return Box{}, fmt.Errorf("build the box: %w", err)
	}
	return b, nil
}

func build(ctx context.Context, c Config) (Box, error) {
	recipe, err := rootfs.LoadRecipe(c.Recipe)
	if err != nil {
		return Box{}, err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return Box{}, err
	}
	public, err := sshKey(ctx, filepath.Join(c.Dir, keyName))
	if err != nil {
		return Box{}, err
	}
	stage, err := rootfs.Key(ctx, recipe)
	if err != nil {
		return Box{}, err
	}
	// Bytes of the sum: 64 bits tell the few boxes of one folder apart.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s", stage, rootfs.FormatKey(recipe.DiskMiB), public, boxVagrantfile))
	version := fmt.Sprintf("%x", sum[:8])
	dir := filepath.Join(c.Dir, "box-"+version)
	b := Box{
		Version: version, File: filepath.Join(dir, fileName), Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.img"),
		PrivateKey: filepath.Join(c.Dir, keyName), MemoryMiB: recipe.MemoryMiB, VCPUs: recipe.VCPUs,
	}
	start, how := time.Now(), "reused"
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		how = "built"
		fmt.Fprintln(c.Progress, "building the box from Debian's packages; this takes some two minutes ...")
		if err := makeBox(ctx, recipe, public, sum, dir); err != nil {
			return Box{}, err
		}
	}
	fmt.Fprintf(c.Progress, "box %s %s in %.1f s\n", version, how, time.Since(start).Seconds())
	return b, removeOthers(c.Dir, filepath.Base(dir))
}

// makeBox makes everything in a folder beside dir, which then appears whole or not at all.
func makeBox(ctx context.Context, recipe rootfs.Recipe, public string, sum [sha256.Size]byte, dir string) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(dir), ".box-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.Chmod(work, 0o711); err != nil { // mmdebstrap passes through as another user
		return err
	}
	tree, out, image := filepath.Join(work, "system"), filepath.Join(work, "out"), filepath.Join(work, "disk")
	if err := rootfs.Stage(ctx, recipe, tree); err != nil {
		return err
	}
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	if err := admit(tree, public); err != nil {
		return err
	}
	for pattern, name := range map[string]string{"vmlinuz-*": "vmlinuz", "initrd.img-*": "initrd.img"} {
		if err := moveOne(filepath.Join(tree, "boot", pattern), filepath.Join(out, name)); err != nil {
			return err
		}
	}
	if err := rootfs.WriteDisk(ctx, tree, image, fmt.Sprintf("%x", sum), recipe.DiskMiB); err != nil {
		return err
	}
	if err := pack(ctx, image, work, filepath.Join(out, fileName), recipe.DiskMiB); err != nil {
		return err
	}
	return os.Rename(out, dir)
}

// vagrantUID is the account's in setup.sh.
const vagrantUID = 1000

// admit lets the holder of the key in as user vagrant.
func admit(tree, public string) error {
	dir := filepath.Join(tree, "home/vagrant/.ssh")
	file := filepath.Join(dir, "authorized_keys")
	return errors.Join(
		os.Mkdir(dir, 0o700), os.WriteFile(file, []byte(public), 0o600),
		os.Chown(dir, vagrantUID, vagrantUID), os.Chown(file, vagrantUID, vagrantUID))
}

func moveOne(pattern, to string) error {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("%d files are %s, want 1", len(found), pattern)
	}
	return os.Rename(found[0], to)
}

// boxVagrantfile is what the box itself brings; vagrant/Vagrantfile says the rest.
const boxVagrantfile = "Vagrant.configure(\"2\") { |config| config.vm.synced_folder \".\", \"/vagrant\", disabled: true }\n"

// pack makes the box file, in the format of vagrant-libvirt: a tar with metadata, Vagrantfile and the disk
// as qcow2.
func pack(ctx context.Context, image, work, file string, diskMiB int) error {
	disk := filepath.Join(work, "box.img")
	if err := run(ctx, "qemu-utils", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, disk); err != nil {
		return err
	}
	metadata := fmt.Sprintf(`{"provider": "libvirt", "format": "qcow2", "virtual_size": %d}`+"\n", diskMiB/1024)
	for name, content := range map[string]string{"metadata.json": metadata, "Vagrantfile": boxVagrantfile} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return run(ctx, "tar", "tar", "-C", work, "-cf", file, "metadata.json", "Vagrantfile", "box.img")
}

// sshKey returns the public half of the key at path, which is made if it is not there.
func sshKey(ctx context.Context, path string) (string, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := run(ctx, "openssh-client", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "wrenn-vm", "-f", path); err != nil {
			return "", err
		}
	}
	public, err := os.ReadFile(path + ".pub")
	if err != nil {
		return "", fmt.Errorf("read the SSH key: %w", err)
	}
	return string(public), nil
}

// removeOthers removes boxes of earlier recipes, and what a killed build left.
func removeOthers(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		box := strings.HasPrefix(e.Name(), "box-") || strings.HasPrefix(e.Name(), ".box-")
		if box && e.Name() != keep {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// run runs a program of a Debian package and returns what it said when it failed.
func run(ctx context.Context, debian, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("run %s: install Debian's package %s (make deps-vm): %w", name, debian, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
