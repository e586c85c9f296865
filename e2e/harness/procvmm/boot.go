package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// newRoot is where the root drive is mounted before it becomes the root. The mount is seen in the guest's
// mount namespace alone, and every Linux host has this directory.
const newRoot = "/mnt"

// guestMain is the guest's first process: it makes the root drive the root, starts envd and reaps what it
// leaves behind. It ends when envd does, and the kernel ends the rest of the guest then.
func guestMain() int {
	if err := boot(); err != nil {
		fmt.Fprintln(os.Stderr, "procvmm-guest: fatal:", err)
		return 1
	}
	return 0
}

func boot() error {
	started := bootSeconds()
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	var cfg guestConfig
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if err := enterRoot(cfg); err != nil {
		return err
	}
	for _, err := range setUpIdentity(cfg.Args) {
		fmt.Fprintln(os.Stderr, "procvmm-guest:", err)
	}
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM)
	go func() {
		<-ends
		os.Exit(0)
	}()
	// What was dropped is so for this thread and what it starts.
	runtime.LockOSThread()
	if err := dropPowers(); err != nil {
		return err
	}
	envd, err := startEnvd(started)
	if err != nil {
		return err
	}
	return reap(envd)
}

// special is a file system of the guest beside its disk.
type special struct {
	source, target, fstype string
	flags                  uintptr
	options                string
}

// specials have what a guest's have; /dev is a small one of its own, so that no program in the guest
// changes the host's.
var specials = []special{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV | unix.MS_RDONLY, ""},
	{"dev", "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,gid=5,mode=0620,ptmxmode=0666"},
	{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%"},
}

// enterRoot mounts the drive and what belongs below it and makes it the root of this process.
func enterRoot(cfg guestConfig) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mountDrive(cfg.Drive, newRoot); err != nil {
		return err
	}
	for _, s := range specials {
		target := newRoot + s.target
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("make a mount point: %w", err)
		}
		if err := unix.Mount(s.source, target, s.fstype, s.flags, s.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", s.fstype, s.target, err)
		}
	}
	if err := makeDevices(newRoot + "/dev"); err != nil {
		return err
	}
	if err := guardHost(newRoot); err != nil {
		return err
	}
	if cfg.Envd != "" {
		if err := unix.Mount(cfg.Envd, newRoot+envdPath, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put %s in the place of the drive's envd: %w", cfg.Envd, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("enter the root drive: %w", err)
	}
	// The old root comes to lie on the new one and is taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("make the root drive the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return unix.Chdir("/")
}

// hostFiles steer the host's kernel, which a guest's root would otherwise do by accident: a suite that
// crashes its guest by sysrq-trigger would restart the machine.
var hostFiles = []string{"/proc/sysrq-trigger", "/proc/sys", "/proc/irq", "/proc/bus"}

// guardHost makes hostFiles read-only. It is no isolation: root in the guest can undo it on purpose.
func guardHost(root string) error {
	for _, path := range hostFiles {
		path = root + path
		err := unix.Mount(path, path, "", unix.MS_BIND, "")
		if errors.Is(err, unix.ENOENT) {
			continue // not every kernel has each
		}
		if err == nil {
			err = unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	return nil
}

// powers are those of root that reach the host's clock, kernel and devices, whatever the namespaces.
var powers = []uintptr{unix.CAP_SYS_TIME, unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO, unix.CAP_MKNOD, unix.CAP_SYSLOG}

// dropPowers takes powers from every program that the calling thread starts.
func dropPowers() error {
	for _, p := range powers {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, p, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", p, err)
		}
	}
	return nil
}

// makeDevices fills a guest's /dev with the host's nodes that any program expects.
func makeDevices(dev string) error {
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "net/tun"} {
		node := filepath.Join(dev, name)
		if err := os.MkdirAll(filepath.Dir(node), 0o755); err != nil {
			return fmt.Errorf("make /dev: %w", err)
		}
		if err := os.WriteFile(node, nil, 0o600); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
		if err := unix.Mount("/dev/"+name, node, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return fmt.Errorf("make /dev: %w", err)
		}
	}
	return nil
}

// setUpIdentity does what the kernel's command line says about name and resolvers.
func setUpIdentity(args string) []error {
	var errs []error
	try := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if dns := bootArg(args, "wrenn.dns"); dns != "" {
		lines := "nameserver " + strings.ReplaceAll(dns, ",", "\nnameserver ") + "\n"
		try("write resolv.conf", replaceFile("/etc/resolv.conf", lines))
	}
	if name := bootArg(args, "wrenn.hostname"); name != "" {
		try("set the host name", unix.Sethostname([]byte(name)))
		try("write hostname", replaceFile("/etc/hostname", name+"\n"))
		try("write hosts", replaceFile("/etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\t"+name+"\n::1\tlocalhost\n"))
	}
	return errs
}

// replaceFile writes a file that may be a link, out of the drive even.
func replaceFile(path, content string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

// startEnvd starts the daemon. It is not told that it has a guest of its own, since the clock is the host's; but the
// network is the guest's.
func startEnvd(started string) (pid int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("open envd's standard input: %w", err)
	}
	defer null.Close()
	p, err := os.StartProcess(envdPath, []string{"envd"}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "WRENN_INIT_SECONDS=" + started, "WRENN_FORWARD_PORTS=1"},
		Files: []*os.File{null, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start envd: %w", err)
	}
	pid = p.Pid
	// It is waited for by pid together with all others; the handle is not needed.
	return pid, p.Release()
}

// reap collects dead children until envd is one of them.
func reap(envd int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		case pid == envd:
			fmt.Fprintf(os.Stderr, "procvmm-guest: envd ended (status %#x), the guest ends\n", uint32(status))
			return nil
		}
	}
}

// bootSeconds is the time since the host started, suspended time included, in seconds.
func bootSeconds() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return "0"
	}
	return fmt.Sprintf("%.3f", float64(ts.Nano())/1e9)
}
