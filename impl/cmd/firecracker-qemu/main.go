// Command firecracker-qemu takes Firecracker's place where there is no hardware virtualization: the same
// command line, API and exit codes, with QEMU running the guest.
package main

import (
	"os"

	"wrenn/impl/qemu"
)

func main() {
	os.Exit(qemu.Main(os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}
