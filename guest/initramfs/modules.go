package initramfs

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Wanted are the modules that a guest needs before its disk is there: the virtio transport, disk,
// network and entropy; and tcp_diag, by which envd sees listening ports. What they depend on is found in
// the modules themselves.
var Wanted = []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "tcp_diag"}

// Module is a kernel module, ready to be loaded.
type Module struct {
	Name string // as in /proc/modules, with underscores
	Data []byte // the ELF object, uncompressed
}

// Modules reads the wanted modules and all that they depend on from the modules' folder of one kernel
// (lib/modules/RELEASE), in an order in which they can be loaded. Modules built into the kernel are
// left out.
func Modules(ctx context.Context, dir string, wanted []string) ([]Module, error) {
	l := loader{builtin: map[string]bool{}, paths: map[string]string{}, state: map[string]state{}}
	if err := l.index(dir); err != nil {
		return nil, fmt.Errorf("list kernel modules of %s: %w", dir, err)
	}
	for _, name := range wanted {
		if err := l.add(ctx, name); err != nil {
			return nil, err
		}
	}
	return l.modules, nil
}

type state int

const (
	unseen state = iota
	open
	done
)

// loader walks the dependencies depth first, so that a module comes after all it depends on.
type loader struct {
	builtin map[string]bool
	paths   map[string]string
	state   map[string]state
	modules []Module
}

func (l *loader) index(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(bytes.NewReader(list)); s.Scan(); {
		l.builtin[moduleName(s.Text())] = true
	}
	return filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			l.paths[moduleName(path)] = path
		}
		return err
	})
}

// moduleName is what the kernel calls the module in a file: virtio-rng.ko.xz is virtio_rng.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return strings.ReplaceAll(name, "-", "_")
}

func (l *loader) add(ctx context.Context, name string) error {
	if l.builtin[name] || l.state[name] == done {
		return nil
	}
	if l.state[name] == open {
		return fmt.Errorf("kernel module %s depends on itself", name)
	}
	l.state[name] = open
	path, found := l.paths[name]
	if !found {
		return fmt.Errorf("kernel module %s is neither built in nor among the kernel's files", name)
	}
	data, err := readModule(ctx, path)
	if err != nil {
		return fmt.Errorf("read kernel module %s: %w", name, err)
	}
	depends, err := depends(data)
	if err != nil {
		return fmt.Errorf("read the dependencies of kernel module %s: %w", name, err)
	}
	for _, d := range depends {
		if err := l.add(ctx, d); err != nil {
			return err
		}
	}
	l.state[name] = done
	l.modules = append(l.modules, Module{Name: name, Data: data})
	return nil
}

// readModule returns the module's ELF object; newer Debian kernels compress the files.
func readModule(ctx context.Context, path string) ([]byte, error) {
	if filepath.Ext(path) == ".xz" {
		out, err := exec.CommandContext(ctx, "xz", "-dc", path).Output()
		if err != nil {
			return nil, fmt.Errorf("decompress with xz (Debian's package xz-utils, make deps): %w", err)
		}
		return out, nil
	}
	return os.ReadFile(path)
}

// depends reads the "depends=" line that the kernel's build puts into the section .modinfo; depmod
// works out the same list from the symbols.
func depends(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for line := range bytes.SplitSeq(info, []byte{0}) {
		if list, found := bytes.CutPrefix(line, []byte("depends=")); found {
			names := strings.Split(strings.ReplaceAll(string(list), "-", "_"), ",")
			return slices.DeleteFunc(names, func(s string) bool { return s == "" }), nil
		}
	}
	return nil, nil
}
