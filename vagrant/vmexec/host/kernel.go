package host

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/guest/kernel"
	"wrenn/vagrant/vmexec/link"
	"wrenn/vagrant/vmexec/machine"
	"wrenn/vagrant/vmexec/pack"
)

// kernelFiles are the parts of a kernel package that a machine needs.
type kernelFiles struct{ image, modules string }

// cacheFolder holds the kernel and the verdict on KVM, below the module's root.
const cacheFolder = "build/vmexec"

// findKernel returns the cached kernel, or fetches Debian's current one. Asking APT which that is takes
// two seconds, so a cached one is kept until `make clean`.
func findKernel(ctx context.Context, cache string) (kernelFiles, error) {
	found, err := filepath.Glob(filepath.Join(cache, "linux-image-*_*"))
	if err != nil {
		return kernelFiles{}, fmt.Errorf("look for the kernel: %w", err)
	}
	if len(found) > 0 {
		slices.Sort(found)
		dir := found[len(found)-1]
		name, version, _ := strings.Cut(filepath.Base(dir), "_")
		return filesOf(kernel.Package{Name: name, Version: version}, dir), nil
	}
	p, err := kernel.Resolve(ctx, kernel.Metapackage)
	if err != nil {
		return kernelFiles{}, err
	}
	dir := filepath.Join(cache, p.Name+"_"+p.Version)
	if err := p.Fetch(ctx, dir); err != nil {
		// Another vmexec may have been faster.
		if _, there := os.Stat(dir); there != nil {
			return kernelFiles{}, err
		}
	}
	return filesOf(p, dir), nil
}

func filesOf(p kernel.Package, dir string) kernelFiles {
	return kernelFiles{image: p.Image(dir), modules: p.Modules(dir)}
}

// kvmModule is the driver for nested guests.
func kvmModule(kvm bool) string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if kvm && err == nil && strings.Contains(string(info), " vmx ") {
		return "kvm_intel"
	}
	return "kvm_amd" // which is what QEMU emulates
}

// KVMWorks tells whether machines really run on this machine's /dev/kvm; root is the module's folder, in
// which the verdict is kept.
func KVMWorks(ctx context.Context, root string) (bool, error) {
	cache := filepath.Join(root, cacheFolder)
	k, err := findKernel(ctx, cache)
	if err != nil {
		return false, err
	}
	return kvmWorks(ctx, cache, k)
}

// probeLimit bounds the boot that tells whether KVM works: with it a boot takes well under a second.
const probeLimit = 5 * time.Second

// kvmWorks tells whether a machine really boots on /dev/kvm: there are machines where it can be opened,
// and guests hang. The verdict is kept in the cache, by kernels and QEMU.
func kvmWorks(ctx context.Context, cache string, k kernelFiles) (bool, error) {
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
		return false, nil //nolint:nilerr // that is the answer
	}
	var system unix.Utsname
	if err := unix.Uname(&system); err != nil {
		return false, fmt.Errorf("ask for this machine's kernel: %w", err)
	}
	qemu, err := exec.LookPath(machine.Program)
	if err != nil {
		return false, fmt.Errorf("find QEMU (Debian's package qemu-system-x86): %w", err)
	}
	info, err := os.Stat(qemu)
	if err != nil {
		return false, fmt.Errorf("find QEMU: %w", err)
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s", system.Release, system.Version, info.ModTime(), k.image))
	path := filepath.Join(cache, fmt.Sprintf("kvm-%x", key[:8]))
	// What another vmexec is just writing is neither.
	if kept, err := os.ReadFile(path); err == nil && (string(kept) == works || string(kept) == fails) {
		return string(kept) == works, nil
	}
	verdict := fails
	if probe(ctx, k) == nil {
		verdict = works
	}
	if err := os.WriteFile(path, []byte(verdict), 0o644); err != nil {
		return false, fmt.Errorf("keep the verdict on KVM: %w", err)
	}
	return verdict == works, nil
}

const works, fails = "works", "fails"

// probe boots a machine with nothing to do.
func probe(ctx context.Context, k kernelFiles) error {
	r := &run{machine: machine.Config{Kernel: k.image, Memory: defaultMemory, CPUs: 1, KVM: true}}
	if err := r.seal(ctx, pack.NewTree(), k, nil); err != nil {
		return err
	}
	defer r.machine.Initramfs.Close()
	m, err := machine.Start(r.machine)
	if err != nil {
		return err
	}
	defer m.Kill()
	if err := m.Line.SetReadDeadline(time.Now().Add(probeLimit)); err != nil {
		return err
	}
	for {
		kind, _, err := link.Receive(m.Line)
		if err != nil || kind == link.Exit {
			return err
		}
	}
}
