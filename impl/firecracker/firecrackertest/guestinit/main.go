//go:build linux

// Command guestinit is /init of the guest that the conformance suite boots. It loads the modules that lie
// in the initramfs, tells on the console that it is up, and does what wrenn.test= on the kernel's command
// line asks for.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	for dir, kind := range map[string]string{"/proc": "proc", "/dev": "devtmpfs"} {
		report(os.MkdirAll(dir, 0o755))
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			report(err)
		}
	}
	loadModules()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	report(err)
	say("up %s", bytes.TrimSpace(release))
	switch task() {
	case "count":
		for i := 0; ; i++ {
			say("tick %d", i)
			time.Sleep(50 * time.Millisecond)
		}
	case "churn":
		churn()
	case "drives":
		drives()
	case "net":
		echo()
	}
	unix.Sync()
	report(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	select {}
}

func say(format string, args ...any) { fmt.Printf("WRENN-TEST "+format+"\n", args...) }

func report(err error) {
	if err != nil {
		say("error %v", err)
	}
}

func task() string {
	line, err := os.ReadFile("/proc/cmdline")
	report(err)
	for _, word := range strings.Fields(string(line)) {
		if name, ok := strings.CutPrefix(word, "wrenn.test="); ok {
			return name
		}
	}
	return ""
}

// loadModules tries every module until no more load: their order of dependence comes out by itself.
func loadModules() {
	var waiting []string
	report(filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == "/proc" || path == "/dev" || path == "/sys":
			return filepath.SkipDir
		case strings.HasSuffix(path, ".ko"):
			waiting = append(waiting, path)
		}
		return nil
	}))
	for progress := true; progress; {
		progress = false
		var failed []string
		for _, path := range waiting {
			if load(path) {
				progress = true
			} else {
				failed = append(failed, path)
			}
		}
		waiting = failed
	}
}

func load(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	return err == nil || errors.Is(err, unix.EEXIST)
}

// drives tells what each disk starts with and tries to write to it.
func drives() {
	for _, path := range []string{"/dev/vda", "/dev/vdb"} {
		name := filepath.Base(path)
		f, err := await(path, os.O_RDWR)
		if err != nil {
			say("%s not writable: %v", name, err)
			f, err = await(path, os.O_RDONLY)
		}
		if err != nil {
			say("%s missing: %v", name, err)
			continue
		}
		head := make([]byte, 16)
		_, err = io.ReadFull(f, head)
		say("%s holds %q %v", name, head, err)
		if _, err = f.WriteAt([]byte("written by guest"), 4096); err == nil {
			err = f.Sync()
		}
		say("%s write: %v", name, err)
	}
}

// await opens a device that the kernel may still be finding.
func await(path string, flags int) (*os.File, error) {
	var f *os.File
	var err error
	for range 100 {
		if f, err = os.OpenFile(path, flags, 0); !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, err
}

// echo answers on TCP port 7 of 169.254.0.21, for ever.
func echo() {
	report(setAddress("eth0", net.IPv4(169, 254, 0, 21), net.IPv4(255, 255, 255, 252)))
	l, err := net.Listen("tcp4", ":7")
	if err != nil {
		report(err)
		return
	}
	say("listening")
	for {
		conn, err := l.Accept()
		if err != nil {
			report(err)
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // the peer decides when it ends
		}()
	}
}

func setAddress(name string, ip, mask net.IP) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := ioctlAddress(fd, unix.SIOCSIFADDR, name, ip); err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	if err := ioctlAddress(fd, unix.SIOCSIFNETMASK, name, mask); err != nil {
		return fmt.Errorf("netmask of %s: %w", name, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func ioctlAddress(fd int, request uint, name string, ip net.IP) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := ifr.SetInet4Addr(ip.To4()); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, request, ifr)
}
