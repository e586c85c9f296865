// Package firecrackertest is the suite that both Firecracker and its stand-in on QEMU pass: the part of
// the API that Wrenn rests on, with its statuses and texts, and what becomes of the guest and the process.
// It holds stable facts only.
package firecrackertest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// EnvImage names the directory of the guest image, if it is not build/image of the module.
const EnvImage = "WRENN_IMAGE"

// Guest is what the suite boots: a kernel, and an initramfs whose /wrenn-test-init obeys wrenn.test=.
type Guest struct {
	Kernel, Initramfs string
}

// Image returns a file of the built guest image (vmlinux, vmlinuz, initramfs.cpio.gz). Without it the test
// is skipped, as need says.
func Image(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv(EnvImage)
	if dir == "" {
		dir = filepath.Join(moduleRoot(tb), "build", "image")
	}
	return need.File(tb, "image", filepath.Join(dir, name), "build the guest image (make image)")
}

func moduleRoot(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	require.NoError(tb, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		require.NotEqual(tb, dir, parent, "no go.mod above the working directory")
		dir = parent
	}
}

// BuildGuest appends the suite's own init to the built initramfs, which brings the modules.
func BuildGuest(tb testing.TB) Guest {
	tb.Helper()
	guest := Guest{Kernel: Image(tb, "vmlinux"), Initramfs: filepath.Join(tb.TempDir(), "initramfs")}
	base, err := os.ReadFile(Image(tb, "initramfs.cpio.gz"))
	require.NoError(tb, err)
	// The kernel unpacks archives one after the other; an uncompressed one must start at a multiple
	// of four, and zeros between archives are skipped.
	for len(base)%4 != 0 {
		base = append(base, 0)
	}
	archive := bytes.NewBuffer(base)
	program := Build(tb, "wrenn/impl/firecracker/firecrackertest/guestinit")
	body, err := os.ReadFile(program)
	require.NoError(tb, err)
	w := cpio.NewWriter(archive)
	require.NoError(tb, w.WriteHeader(&cpio.Header{Name: "wrenn-test-init", Mode: cpio.TypeReg | 0o755, Size: int64(len(body))}))
	_, err = w.Write(body)
	require.NoError(tb, err)
	require.NoError(tb, w.Close())
	require.NoError(tb, os.WriteFile(guest.Initramfs, archive.Bytes(), 0o600))
	return guest
}

// Build compiles a program of this module, statically, and returns its path.
func Build(tb testing.TB, pkg string) string {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	text, err := cmd.CombinedOutput()
	require.NoError(tb, err, "go build %s: %s", pkg, text)
	return out
}

// Args is the kernel's command line that makes the guest do a task: "churn", "count", "drives", "net" or "".
func (Guest) Args(task string) string {
	return "console=ttyS0 quiet reboot=k panic=1 pci=off rdinit=/wrenn-test-init wrenn.test=" + task
}
