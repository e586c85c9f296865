package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"wrenn/impl/internal/atomicfile"
)

// ProbeConfig says which VMM to try, with which guest.
type ProbeConfig struct {
	// Binary is the path of the VMM, Env further variables of it, as in LaunchConfig.
	Binary string
	Env    []string
	// Kernel and Initramfs are of the guest image. Without a root device its init prints
	// "WRENN-PROBE-OK RELEASE" and reboots.
	Kernel, Initramfs string
	// CacheDir keeps verdicts; it is created. Empty for none.
	CacheDir string
	// Timeout bounds the boot; 0 means 5 s.
	Timeout time.Duration
	// Fresh boots a guest even where a verdict is kept.
	Fresh bool
}

// Verdict is what a probe found.
type Verdict struct {
	// OK says that a guest has booted.
	OK bool `json:"ok"`
	// Reason says what was seen: the guest's kernel, or what went wrong.
	Reason string `json:"reason"`
	// Took is how long the boot took, from starting the VMM to the guest's line.
	Took time.Duration `json:"took"`
	// Hung says that the whole timeout passed, which is why such a failure is kept.
	Hung bool `json:"hung"`
	// Cached says that an earlier probe found it.
	Cached bool `json:"-"`
}

const defaultProbeTimeout = 5 * time.Second

// probeLine wants the end of the line, too: on a slow console a line comes in parts.
var probeLine = regexp.MustCompile(`WRENN-PROBE-OK (\S+)\s`)

// Probe finds out whether a VMM works on this machine by booting a guest: that /dev/kvm can be opened
// proves nothing. A verdict is kept for the same kernel, initramfs, VMM, environment and timeout until
// the host is rebooted (a failure for an hour), so that the next start takes milliseconds. An error means that the probe itself
// could not be made; that the guest did not boot is a Verdict.
func Probe(ctx context.Context, cfg ProbeConfig) (Verdict, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultProbeTimeout
	}
	key, err := cfg.key()
	if err != nil {
		return Verdict{}, fmt.Errorf("probe %s: %w", cfg.Binary, err)
	}
	if v, ok := cfg.recall(key); ok && !cfg.Fresh {
		return v, nil
	}
	v, err := cfg.boot(ctx)
	if err != nil {
		return Verdict{}, fmt.Errorf("probe %s: %w", cfg.Binary, err)
	}
	if err := cfg.remember(key, v); err != nil {
		return v, fmt.Errorf("probe %s: keep the verdict: %w", cfg.Binary, err)
	}
	return v, nil
}

// boot starts the guest and waits for its line.
func (cfg ProbeConfig) boot(ctx context.Context) (v Verdict, err error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	dir, err := cfg.workDir()
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	console := filepath.Join(dir, "console")
	begin := time.Now()
	p, err := Launch(ctx, LaunchConfig{Binary: cfg.Binary, Env: cfg.Env, ID: "probe",
		SocketPath: filepath.Join(dir, "api.sock"), ConsolePath: console, ReadyTimeout: cfg.Timeout})
	if err != nil {
		return cfg.verdict(ctx, begin, "", err)
	}
	defer func() { err = errors.Join(err, p.Kill(context.WithoutCancel(ctx))) }()
	if err := cfg.configure(ctx, filepath.Join(dir, "api.sock")); err != nil {
		return cfg.verdict(ctx, begin, "", fmt.Errorf("%w; its console ends with: %s", err, tail(console)))
	}
	release, err := awaitProbeLine(ctx, p, console)
	return cfg.verdict(ctx, begin, release, err)
}

// workDir is below CacheDir, so that a machine whose prober was killed is found there by Orphans.
func (cfg ProbeConfig) workDir() (string, error) {
	if cfg.CacheDir == "" {
		return os.MkdirTemp("", "wrenn-probe-")
	}
	if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
		return "", err
	}
	return os.MkdirTemp(cfg.CacheDir, "run-")
}

// verdict tells a VMM that does not work from a caller that gave up.
func (cfg ProbeConfig) verdict(ctx context.Context, begin time.Time, release string, err error) (Verdict, error) {
	v := Verdict{OK: err == nil, Reason: "booted Linux " + release, Took: time.Since(begin)}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return Verdict{}, ctx.Err()
	case err != nil && ctx.Err() != nil:
		v.Hung, v.Reason = true, fmt.Sprintf("no guest booted within %s: %s", cfg.Timeout, err)
	case err != nil:
		v.Reason = err.Error()
	}
	return v, nil
}

func (cfg ProbeConfig) configure(ctx context.Context, socket string) error {
	c := NewClient(socket)
	defer c.Close()
	// 128 MiB is Firecracker's own default and holds kernel and initramfs three times over.
	if err := c.PutMachineConfig(ctx, MachineConfig{VCPUCount: 1, MemSizeMiB: 128}); err != nil {
		return err
	}
	boot := BootSource{KernelImagePath: cfg.Kernel, InitrdPath: cfg.Initramfs,
		BootArgs: "console=ttyS0 quiet reboot=k panic=1 pci=off"}
	if err := c.PutBootSource(ctx, boot); err != nil {
		return err
	}
	return c.Start(ctx)
}

func awaitProbeLine(ctx context.Context, p *Process, console string) (release string, err error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the console ends with: %s", tail(console))
		case <-p.Done():
			ended = true // what it printed last may be the line
		case <-tick.C:
		}
		text, err := os.ReadFile(console)
		if err != nil {
			return "", fmt.Errorf("read the console: %w", err)
		}
		if found := probeLine.FindSubmatch(text); found != nil {
			return string(found[1]), nil
		}
		if ended {
			return "", fmt.Errorf("the VMM ended with %s; the console ends with: %s", p.ExitStatus(), tail(console))
		}
	}
}

// failureAge is how long a failure is believed: a machine may just have been too busy.
const failureAge = time.Hour

// kept is a verdict on disk. One file per VMM and environment, so that the directory does not grow.
type kept struct {
	Key     string    `json:"key"`
	At      time.Time `json:"at"`
	Verdict Verdict   `json:"verdict"`
}

func (cfg ProbeConfig) file() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q", cfg.Binary, cfg.Env))
	return filepath.Join(cfg.CacheDir, hex.EncodeToString(sum[:8])+".json")
}

// key is what a verdict holds for: the files (by inode, size and time), the timeout and the host's boot.
func (cfg ProbeConfig) key() (string, error) {
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	key := fmt.Sprintf("boot %s timeout %s", boot, cfg.Timeout)
	for _, path := range []string{cfg.Binary, cfg.Kernel, cfg.Initramfs} {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		var inode uint64
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			inode = st.Ino
		}
		key += fmt.Sprintf(" %q %d %d %d", path, inode, info.Size(), info.ModTime().UnixNano())
	}
	return key, nil
}

// recall reads a kept verdict; what is missing, unreadable or out of date is probed again.
func (cfg ProbeConfig) recall(key string) (Verdict, bool) {
	if cfg.CacheDir == "" {
		return Verdict{}, false
	}
	var k kept
	raw, err := os.ReadFile(cfg.file())
	if err != nil || json.Unmarshal(raw, &k) != nil || k.Key != key {
		return Verdict{}, false
	}
	if !k.Verdict.OK && time.Since(k.At) > failureAge {
		return Verdict{}, false
	}
	k.Verdict.Cached = true
	return k.Verdict, true
}

// remember keeps a verdict for the next probe. A failure that was quick is not kept: it costs little to
// see again, and its cause may be mended meanwhile.
func (cfg ProbeConfig) remember(key string, v Verdict) error {
	if cfg.CacheDir == "" || !v.OK && !v.Hung {
		return nil
	}
	raw, err := json.Marshal(kept{Key: key, At: time.Now(), Verdict: v})
	if err != nil {
		return err
	}
	return atomicfile.Write(cfg.file(), raw, 0o600)
}
