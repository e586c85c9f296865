// Package netnstest gives a test program a host of its own: an empty network namespace, and a mount
// namespace with an empty /run, so that nothing it does to links, routes, iptables or named
// namespaces is seen by, or meets, anything else on the machine.
package netnstest

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const marker = "WRENN_TEST_OWN_HOST"

// Isolate is for TestMain, before anything else: it puts the process into namespaces of its own by
// executing the same program again inside them, and returns there. As another user than root it
// returns at once; tests that need the namespaces say so by need.Root. On failure it ends the process.
//
// lo is down and the only link, as in every new namespace.
func Isolate() {
	if os.Geteuid() != 0 || os.Getenv(marker) != "" {
		return
	}
	if err := isolate(); err != nil {
		fmt.Fprintln(os.Stderr, "netnstest:", err)
		os.Exit(1)
	}
}

// isolate returns only on error. The namespaces are this thread's alone; execve makes them the
// process's, since it ends every other thread.
func isolate() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unsharing: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting an empty /run: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return unix.Exec(self, os.Args, append(os.Environ(), marker+"=1"))
}
