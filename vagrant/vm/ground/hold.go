package ground

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// holdEnv holds the ground's folder in the environment of the holder.
const holdEnv = "WRENN_VM_HOLD"

// readyWord is what the holder says on the first of its extra files.
const readyWord = "ready\n"

const readyFD = 3

// socket is libvirtd's.
const socket = "/run/libvirt/libvirt-sock"

// Held says whether this process was started to hold a ground.
func Held() bool { return os.Getenv(holdEnv) != "" }

// Hold is the holder: the first process of its namespaces. It returns only when libvirtd cannot be started
// or ends; everything in the ground ends with it.
func Hold() error {
	dir := os.Getenv(holdEnv)
	if err := os.Unsetenv(holdEnv); err != nil {
		return err
	}
	if err := mountAll(filepath.Join(dir, libvirtName)); err != nil {
		return err
	}
	if err := writeSettings(); err != nil {
		return err
	}
	// libvirt's networks need forwarding, and lo is down in a new network.
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil { //nolint:noctx // milliseconds
		return fmt.Errorf("bring up lo: %w: %s", err, out)
	}
	daemon := exec.Command("libvirtd") //nolint:noctx // it lives as long as the ground
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	if err := daemon.Start(); err != nil {
		return fmt.Errorf("start libvirtd (make deps-vm): %w", err)
	}
	if err := awaitSocket(daemon.Process.Pid); err != nil {
		return err
	}
	ready := os.NewFile(readyFD, "ready")
	if _, err := ready.WriteString(readyWord); err != nil {
		return err
	}
	if err := ready.Close(); err != nil {
		return err
	}
	return reap(daemon.Process.Pid)
}

// mount is one of the ground's own.
type mount struct {
	source, target, fstype string
	flags                  uintptr
}

// mountAll gives the ground its own view of processes, links, sockets and of libvirt's files.
func mountAll(libvirt string) error {
	if err := os.MkdirAll(filepath.Join(libvirt, "lib"), 0o755); err != nil {
		return err
	}
	for _, m := range []mount{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"sysfs", "/sys", "sysfs", 0},
		{"run", "/run", "tmpfs", 0},
		{"etc", "/etc/libvirt", "tmpfs", 0},
		{"cache", "/var/cache/libvirt", "tmpfs", 0},
		{"log", "/var/log/libvirt", "tmpfs", 0},
		{filepath.Join(libvirt, "lib"), "/var/lib/libvirt", "", unix.MS_BIND},
	} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s (if it is libvirt's: make deps-vm): %w", m.target, err)
		}
	}
	for _, d := range []string{"/run/lock", "/run/libvirt", "/var/lib/libvirt/images", "/etc/libvirt/qemu"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// settings are libvirt's: all as root and nothing confined, since the ground is that already, and no daemon
// but libvirtd.
var settings = map[string]string{
	"/etc/libvirt/qemu.conf": `user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
`,
	"/etc/libvirt/libvirtd.conf": `auth_unix_rw = "none"
unix_sock_group = "root"
`,
}

func writeSettings() error {
	for path, content := range settings {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// awaitSocket waits until libvirtd answers.
func awaitSocket(pid int) error {
	for deadline := time.Now().Add(startLimit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil { //nolint:noctx // local, and answers at once or not at all
			return conn.Close()
		}
		if ended, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil || ended == pid {
			return errors.New("libvirtd ended at its start")
		}
	}
	return fmt.Errorf("libvirtd does not answer after %v", startLimit)
}

// reap collects what ends in the ground until libvirtd is among it.
func reap(daemon int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		case pid == daemon:
			return fmt.Errorf("libvirtd ended (status %#x)", uint32(status))
		}
	}
}
