// Package guest_test boots the built image on an emulated machine and looks at it from the outside and
// from the inside.
package guest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/guest/rootfs"
	"wrenn/impl/need"
)

const (
	imageDir = "../build/image"
	// bootLimit bounds one guest's life. A boot takes 2 s under emulation on an idle machine.
	bootLimit = 2 * time.Minute
	remedy    = "make image"
)

// machine is a guest to boot.
type machine struct {
	disk      string // path of its disk, none when empty
	arguments string // kernel arguments beside those that every guest gets
	netdev    string // QEMU's -netdev, a dead end when empty
	// until ends the guest when a line of its console contains it; empty waits for the guest's own end.
	until string
	// reached, if set, is called when until was seen and before the guest is ended.
	reached func()
}

// life is what a guest did.
type life struct {
	console string
	seen    time.Duration // from power-on to the line with until
	took    time.Duration // from power-on to the end
}

// boot runs the machine on QEMU without KVM. The guest must end by itself with QEMU's status 0 (which
// is how a reboot ends it), or show until.
func (m machine) boot(t *testing.T) life {
	t.Helper()
	need.Program(t, "qemu-system-x86_64")
	kernel := need.File(t, "image", filepath.Join(imageDir, "vmlinux"), remedy)
	initramfs := need.File(t, "image", filepath.Join(imageDir, "initramfs.cpio.gz"), remedy)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.commandLine(t, kernel, initramfs)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	console, err := cmd.StdoutPipe()
	require.NoError(t, err)
	start := time.Now()
	require.NoError(t, cmd.Start())

	var l life
	for lines := bufio.NewScanner(console); lines.Scan(); {
		l.console += lines.Text() + "\n"
		if m.until != "" && l.seen == 0 && strings.Contains(lines.Text(), m.until) {
			l.seen = time.Since(start)
			if m.reached != nil {
				m.reached()
			}
			cancel()
		}
	}
	err = cmd.Wait()
	l.took = time.Since(start)
	if m.until != "" {
		require.NotZero(t, l.seen, "no %q on the console:\n%s%s", m.until, l.console, &stderr)
		return l
	}
	require.NoError(t, err, "the guest did not end by itself in %s:\n%s%s", bootLimit, l.console, &stderr)
	return l
}

func (m machine) commandLine(t *testing.T, kernel, initramfs string) []string {
	t.Helper()
	netdev := m.netdev
	if netdev == "" {
		netdev = "user,id=net,restrict=on"
	}
	// reboot=t, a triple fault, and not reboot=k as under Firecracker: this bare machine has no keyboard
	// controller, and the kernel would look for it for two seconds.
	line := "console=ttyS0 quiet tsc=reliable tsc_early_khz=" + hostTSC(t) +
		" reboot=t panic=1 pci=off net.ifnames=0 " + m.arguments
	args := []string{
		"-M", "microvm,acpi=on,rtc=on", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "256M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-netdev", netdev, "-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device",
		"-kernel", kernel, "-initrd", initramfs, "-append", line,
	}
	if m.disk != "" {
		args = append(args, "-blockdev", "driver=file,node-name=file,filename="+m.disk,
			"-blockdev", "driver=raw,node-name=disk,file=file", "-device", "virtio-blk-device,drive=disk")
	}
	return args
}

// hostTSC is the frequency of this machine's time stamp counter in kHz. The guest reads that counter
// and, on a loaded machine, hangs when it has to measure it.
func hostTSC(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(t, err)
	found := regexp.MustCompile(`cpu MHz\s*: (\d+)\.(\d{3})`).FindSubmatch(info)
	require.NotNil(t, found, "/proc/cpuinfo names no cpu MHz")
	return fmt.Sprintf("%s%s", found[1], found[2])
}

// testDisk makes a disk of the template base with another program in envd's place.
func testDisk(t *testing.T, envd string) string {
	t.Helper()
	need.Root(t) // for the ownership of the template's files
	need.Program(t, "mkfs.ext4")
	need.File(t, "image", filepath.Join(imageDir, "image.json"), remedy)
	systems, err := filepath.Glob(filepath.Join(imageDir, "cache", "system-base-*"))
	require.NoError(t, err)
	require.NotEmpty(t, systems)
	// Beside the image and not in the test's own folder, which may be on another file system: the disk
	// is made with hard links.
	dir, err := os.MkdirTemp(filepath.Dir(imageDir), "guest-test-") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	disk := filepath.Join(dir, "disk")
	require.NoError(t, rootfs.WriteImage(t.Context(), systems[0], envd, disk, t.Name(), 2048))
	return disk
}
