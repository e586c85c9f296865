package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/vagrant/vm/box"
)

// config is what all commands work with.
type config struct {
	root string // folder of go.mod
	dir  string // build/vagrant: the box, and all that belongs to a machine
}

func newConfig() (*config, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root, for namespaces and the ownership of the box's files (sudo make ...)")
	}
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(root, "vagrant/Vagrantfile")); err != nil {
		return nil, fmt.Errorf("run it in the folder of go.mod: %w", err)
	}
	c := &config{root: root, dir: filepath.Join(root, "build/vagrant")}
	return c, os.MkdirAll(c.dir, 0o755)
}

func (c *config) buildBox(ctx context.Context) (box.Box, error) {
	return box.Build(ctx, box.Config{Recipe: filepath.Join(c.root, "vagrant/vm/box/recipe"), Dir: c.dir, Progress: os.Stderr})
}

// lockWait is how long a command waits for another one: an orderly end takes seconds.
const lockWait = time.Minute

// lock keeps commands from running side by side. A shell holds it too: who wants to work in the machine
// while the suites run opens the shell first.
func (c *config) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(lockWait)
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil || time.Now().After(deadline) {
			return nil, fmt.Errorf("another command works with the machine (lock %s): %w", f.Name(), errors.Join(err, ctx.Err(), f.Close()))
		}
		if !told {
			fmt.Fprintln(os.Stderr, "vm: waiting for another command that works with the machine ...")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// size is how much memory (MiB) and how many cores the machine gets: WRENN_VM_MEMORY and WRENN_VM_CPUS, or
// what the box asks for and all of this machine's cores, at most 8. By emulation it is one core: with two,
// QEMU 7.2's emulation of SVM loses guests, and now and then the machine itself, when both are busy.
func size(b box.Box, kvm bool) (memory, cpus string) {
	memory, cpus = os.Getenv("WRENN_VM_MEMORY"), os.Getenv("WRENN_VM_CPUS")
	if memory == "" {
		memory = strconv.Itoa(b.MemoryMiB)
	}
	switch {
	case cpus != "":
	case kvm:
		cpus = strconv.Itoa(min(max(runtime.NumCPU(), b.VCPUs), 8))
	default:
		cpus = "1"
	}
	return memory, cpus
}
