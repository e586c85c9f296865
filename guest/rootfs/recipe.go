// Package rootfs makes the disks that sandboxes start from: a recipe (packages, files, a set-up script)
// becomes a Debian system in a folder, and the folder an ext4 image. Nothing is mounted on the host.
package rootfs

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"wrenn/impl/safename"
)

// The files of a recipe's folder. Overlay, app and set-up script may be missing.
const (
	fileNumbers  = "recipe.json"
	filePackages = "packages"
	fileOverlay  = "overlay"
	fileApp      = "app"
	fileSetup    = "setup.sh"
)

// Bounds of a recipe's numbers. A guest kernel with its page tables wants 128 MiB; Firecracker has at
// most 32 virtual CPUs; ext4 with 4 KiB blocks and a resize inode goes further than a TiB, but no host
// of ours does.
const (
	maxVCPUs                   = 32
	minMemoryMiB, maxMemoryMiB = 128, 256 << 10
	minDiskMiB, maxDiskMiB     = 512, 1 << 20
)

// Recipe says what a template consists of.
type Recipe struct {
	Name string // the folder's name, a SafeName
	Dir  string // absolute path of the folder

	VCPUs     int // of a sandbox that asks for nothing else: 1..32
	MemoryMiB int // likewise: 128..262144
	DiskMiB   int // apparent size of the disk: 512..1048576

	Packages []string // Debian packages, in the order of the file
}

// LoadRecipe reads a recipe's folder. Unknown fields, numbers out of bounds and names that are no
// package's are errors that name the file.
func LoadRecipe(dir string) (Recipe, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Recipe{}, fmt.Errorf("find recipe %s: %w", dir, err)
	}
	r := Recipe{Name: filepath.Base(dir), Dir: dir}
	if err := safename.Check("template", r.Name); err != nil {
		return Recipe{}, fmt.Errorf("read recipe folder %s: %w", dir, err)
	}
	if err := r.loadNumbers(); err != nil {
		return Recipe{}, fmt.Errorf("read %s: %w", filepath.Join(dir, fileNumbers), err)
	}
	list, err := os.ReadFile(filepath.Join(dir, filePackages))
	if err != nil {
		return Recipe{}, fmt.Errorf("read the recipe's packages: %w", err)
	}
	if r.Packages, err = parsePackages(list); err != nil {
		return Recipe{}, fmt.Errorf("read %s: %w", filepath.Join(dir, filePackages), err)
	}
	return r, nil
}

func (r *Recipe) loadNumbers() error {
	b, err := os.ReadFile(filepath.Join(r.Dir, fileNumbers))
	if err != nil {
		return err
	}
	var n struct {
		VCPUs     int `json:"vcpus"`
		MemoryMiB int `json:"memoryMib"`
		DiskMiB   int `json:"diskMib"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&n); err != nil {
		return err
	}
	r.VCPUs, r.MemoryMiB, r.DiskMiB = n.VCPUs, n.MemoryMiB, n.DiskMiB
	return errors.Join(
		within("vcpus", n.VCPUs, 1, maxVCPUs),
		within("memoryMib", n.MemoryMiB, minMemoryMiB, maxMemoryMiB),
		within("diskMib", n.DiskMiB, minDiskMiB, maxDiskMiB))
}

func within(field string, n, low, high int) error {
	if n < low || n > high {
		return fmt.Errorf("%s is %d, want %d..%d", field, n, low, high)
	}
	return nil
}

// parsePackages reads one package per line; # starts a comment.
func parsePackages(list []byte) ([]string, error) {
	var packages []string
	scanner := bufio.NewScanner(bytes.NewReader(list))
	for line := 1; scanner.Scan(); line++ {
		name, _, _ := strings.Cut(scanner.Text(), "#")
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789+-.") != "" {
			return nil, fmt.Errorf("line %d: %q is no package name", line, name)
		}
		packages = append(packages, name)
	}
	return packages, scanner.Err()
}

// has says whether the recipe's folder holds the file or folder.
func (r Recipe) has(name string) bool {
	_, err := os.Stat(filepath.Join(r.Dir, name))
	return err == nil
}

// hashContent hashes what decides the system's content: packages, overlay, app, set-up script. The numbers
// of recipe.json do not, so a change of memory rebuilds nothing.
func (r Recipe) hashContent() (string, error) {
	h := sha256.New()
	for _, p := range r.Packages {
		fmt.Fprintf(h, "package %s\n", p)
	}
	for _, name := range []string{fileSetup, fileOverlay, fileApp} {
		if !r.has(name) {
			continue
		}
		err := filepath.WalkDir(filepath.Join(r.Dir, name), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return hashEntry(h, r.Dir, path, d)
		})
		if err != nil {
			return "", fmt.Errorf("hash recipe %s: %w", r.Name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashEntry adds one file to a recipe's hash: path, type and executable bit (all the mode that a
// checkout keeps), content.
func hashEntry(h io.Writer, base, path string, d fs.DirEntry) error {
	rel, err := filepath.Rel(base, path)
	if err != nil {
		return err
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	var content []byte
	switch {
	case info.Mode().IsRegular():
		content, err = os.ReadFile(path)
	case info.Mode()&fs.ModeSymlink != 0:
		var target string
		target, err = os.Readlink(path)
		content = []byte(target)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "file %q %v %v %d\n", rel, info.Mode().Type(), info.Mode()&0o100 != 0, len(content))
	_, err = h.Write(content)
	return err
}
