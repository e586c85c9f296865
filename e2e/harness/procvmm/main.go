// Command procvmm is a VMM without a VM, for tests only and never installed: it has Firecracker's command
// line and the part of its API that Wrenn's agent uses, and its guest is the root drive's own user space,
// with the daemon envd in it, run as processes of the host's kernel in namespaces of their own. A guest is
// up in tens of milliseconds on any Linux machine, so suites can go through thousands of lives.
//
// What is real: process, socket and exit codes of the VMM, the console, the root drive (an ext4 image,
// mounted by a loop device), and each frame at the TAP, where rules and limits see them. What is not: there
// is no isolation (only some accidents of root are kept from the host), no other kernel, no limit of CPU or memory, and there are no snapshots.
//
// A configuration without a root drive is a probe: procvmm says what wrenn-init would and ends.
package main

import "os"

func main() {
	if os.Args[0] == guestArg0 {
		os.Exit(guestMain())
	}
	os.Exit(vmmMain(os.Args[1:], os.Stdout, os.Stderr))
}
