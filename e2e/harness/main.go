package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns/netnstest"
)

// Main is the TestMain of a package that starts Systems. There is one agent per host, and a census sees
// the whole host, so such packages run one after the other however many `go test` starts at a time.
func Main(m *testing.M) {
	// The threads that visit Hosts end there. The main one cannot, and would stay behind, in another place
	// than the /proc/self of the process says.
	runtime.LockOSThread()
	code, err := locked(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// MainOnOwnHost is Main for a package that starts Systems beside nothing else: its test program gets a network
// with nothing but lo, which is up, and an empty /run. As another user than root it is Main.
func MainOnOwnHost(m *testing.M) {
	netnstest.Isolate()
	if err := raiseLo(); err != nil {
		fmt.Fprintln(os.Stderr, "harness: raise lo:", err)
		os.Exit(1)
	}
	Main(m)
}

func raiseLo() error {
	if os.Geteuid() != 0 {
		return nil // not on a host of its own, and not allowed to
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func locked(run func() int) (code int, err error) {
	root, err := moduleRoot()
	if err != nil {
		return 0, err
	}
	// A file that is there anyway, so that no lock's own stays; not go.mod, which the go command locks.
	lock, err := os.Open(filepath.Join(root, "Makefile"))
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	// The deadline is that of the test binary, which `go test -timeout` sets.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return 0, fmt.Errorf("wait for other suites: %w", err)
	}
	code = run()
	dir, err := probes()
	if err != nil {
		return code, err
	}
	return code, os.RemoveAll(dir)
}
