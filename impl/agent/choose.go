package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wrenn/impl/firecracker"
)

// Names of the VMMs, best first.
const (
	VMMFirecracker = "firecracker"
	VMMQEMUKVM     = "qemu-kvm"
	VMMQEMUTCG     = "qemu-tcg"
)

const (
	// hardwareProbe bounds the probe of a VMM on KVM of real processors. A guest boots in well under a
	// second where KVM works; where it does not, it hangs for ever or the VMM ends at once.
	hardwareProbe = 5 * time.Second
	// emulationProbe bounds that of emulation, or of KVM on emulated processors. Neither can hang for lack of
	// hardware, but both are slow: two seconds or seven on an idle machine, ten times that on a loaded one.
	emulationProbe = 60 * time.Second
)

// Choice is the VMM that an agent uses.
type Choice struct {
	// Name is one of the VMM names; empty when none works.
	Name string `json:"name"`
	// Binary is the program and Env what it gets on top of its environment.
	Binary string   `json:"binary"`
	Env    []string `json:"-"`
	// Reason says why this one, in a sentence.
	Reason string `json:"reason"`
	// Tried is every candidate that was looked at, in order.
	Tried []Attempt `json:"tried"`
	// Err says why none works; nil when one does.
	Err error `json:"-"`
}

// Attempt is what became of one candidate.
type Attempt struct {
	Name   string        `json:"name"`
	OK     bool          `json:"ok"`
	Reason string        `json:"reason"`
	Took   time.Duration `json:"took"`
}

type candidate struct {
	name, program string
	env           []string
	kvm           bool
	timeout       time.Duration
}

// Choose finds the first VMM that really boots a guest here: Firecracker, its stand-in with QEMU on KVM,
// or with QEMU's emulation. That /dev/kvm can be opened proves nothing, so each candidate boots a tiny
// guest; the verdict is kept below cfg.Dir for the same kernel and programs.
func Choose(ctx context.Context, cfg Config) Choice {
	var c Choice
	for _, cand := range candidates(cfg) {
		if cfg.VMM != "" && cfg.VMM != cand.name {
			continue
		}
		binary, attempt := try(ctx, cfg, cand)
		c.Tried = append(c.Tried, attempt)
		if attempt.OK {
			c.Name, c.Binary, c.Env = cand.name, binary, cand.env
			c.Reason = reason(c.Tried)
			return c
		}
	}
	errs := []error{errors.New("no VMM can boot a guest on this machine (see `wrenn doctor`)")}
	if len(c.Tried) == 0 {
		errs = append(errs, fmt.Errorf("%q is no VMM; there are %s, %s and %s", cfg.VMM, VMMFirecracker, VMMQEMUKVM, VMMQEMUTCG))
	}
	for _, a := range c.Tried {
		errs = append(errs, fmt.Errorf("%s: %s", a.Name, a.Reason))
	}
	c.Err = errors.Join(errs...)
	return c
}

func candidates(cfg Config) []candidate {
	kvmProbe := hardwareProbe
	if cpuinfo, err := os.ReadFile("/proc/cpuinfo"); err == nil && emulatedCPU(cpuinfo) {
		kvmProbe = emulationProbe
	}
	return []candidate{
		{VMMFirecracker, cfg.Firecracker, nil, true, kvmProbe},
		{VMMQEMUKVM, cfg.FirecrackerQEMU, []string{"WRENN_QEMU_ACCEL=kvm"}, true, kvmProbe},
		{VMMQEMUTCG, cfg.FirecrackerQEMU, []string{"WRENN_QEMU_ACCEL=tcg"}, false, emulationProbe},
	}
}

// emulatedCPU says whether a machine's processors are QEMU's emulation, by their name in /proc/cpuinfo. KVM
// works there, since the virtualization of the processor is emulated too, but every exit of a guest is
// thousands of emulated instructions: a boot takes 7 s on an idle machine.
func emulatedCPU(cpuinfo []byte) bool {
	return bytes.Contains(cpuinfo, []byte("QEMU TCG CPU"))
}

func try(ctx context.Context, cfg Config, c candidate) (binary string, a Attempt) {
	a.Name = c.name
	if c.kvm {
		if _, err := os.Stat("/dev/kvm"); err != nil {
			a.Reason = "there is no /dev/kvm"
			return "", a
		}
	}
	binary, err := exec.LookPath(c.program)
	if err == nil {
		binary, err = filepath.Abs(binary) // it is started in a sandbox's directory
	}
	if err != nil {
		a.Reason = fmt.Sprintf("the program %q was not found", c.program)
		return "", a
	}
	v, err := firecracker.Probe(ctx, firecracker.ProbeConfig{
		Binary: binary, Env: c.env, Kernel: kernelPath(cfg.ImageDir), Initramfs: initramfsPath(cfg.ImageDir),
		CacheDir: probeDir(cfg), Timeout: c.timeout, Fresh: cfg.ProbeAfresh,
	})
	if err != nil {
		a.Reason = err.Error()
		return "", a
	}
	a.OK, a.Reason, a.Took = v.OK, v.Reason, v.Took
	if v.Cached && !v.OK {
		a.Reason += " (found by an earlier probe; `wrenn doctor` tries again)"
	}
	return binary, a
}

// clearProbes ends the probes of an agent that was killed while it probed.
func clearProbes(ctx context.Context, dir string) error {
	if err := endOrphans(ctx, dir); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(dir, "run-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// probeDir keeps verdicts, and the machines of probes while they run.
func probeDir(cfg Config) string { return filepath.Join(cfg.Dir, "probes") }

// reason says why the last of tried was taken: what was wrong with those before it.
func reason(tried []Attempt) string {
	last := tried[len(tried)-1]
	s := fmt.Sprintf("%s booted a guest in %v", last.Name, last.Took.Round(time.Millisecond))
	for _, a := range tried[:len(tried)-1] {
		s += fmt.Sprintf("; %s did not: %s", a.Name, firstWords(a.Reason))
	}
	return s
}

// firstWords keeps a sentence readable: what a VMM prints when it fails can fill a page, and
// `wrenn doctor` shows it whole.
func firstWords(s string) string {
	const most = 120
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
