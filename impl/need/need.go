// Package need is how a test says what it cannot do without: root, a program, a device.
//
// Where the ability is missing the test is skipped with the reason, unless WRENN_NEED names the
// ability, or says "all": then it must run, and the skip becomes a failure. "all,-kvm" is all but kvm.
// Continuous integration and the test VM set WRENN_NEED, so nothing stays unrun there without anybody
// noticing.
package need

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Env names the variable that lists, separated by commas, the abilities whose absence is a failure, "all"
// for every one, and with a minus in front those that are excepted.
const Env = "WRENN_NEED"

// Root skips unless the test runs as root.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		missing(tb, "root", "run as root (sudo)")
	}
}

// Program skips unless each program is on PATH.
func Program(tb testing.TB, names ...string) {
	tb.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			missing(tb, n, "install "+n+" (make deps)")
		}
	}
}

// DeviceMapper skips unless the kernel has device-mapper and the test runs as root.
func DeviceMapper(tb testing.TB) {
	tb.Helper()
	Root(tb)
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		missing(tb, "dm", "run in a machine that has it (make vmtest)")
	}
}

// File skips unless path exists, and returns it. ability is its name in WRENN_NEED.
func File(tb testing.TB, ability, path, remedy string) string {
	tb.Helper()
	if _, err := os.Stat(path); err != nil {
		missing(tb, ability, remedy)
	}
	return path
}

// Short skips in -short mode; WRENN_NEED does not change that, since -short is a person's own wish.
func Short(tb testing.TB, why string) {
	tb.Helper()
	if testing.Short() {
		tb.Skipf("skipped by -short: %s", why)
	}
}

func missing(tb testing.TB, ability, remedy string) {
	tb.Helper()
	must := strings.Split(os.Getenv(Env), ",")
	if slices.Contains(must, ability) || slices.Contains(must, "all") && !slices.Contains(must, "-"+ability) {
		tb.Fatalf("this test needs %s, and %s says that it must run here: %s", ability, Env, remedy)
	}
	tb.Skipf("this test needs %s: %s", ability, remedy)
}
