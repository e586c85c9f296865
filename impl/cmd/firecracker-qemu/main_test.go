package main

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"wrenn/impl/firecracker/firecrackertest"
	"wrenn/impl/need"
	"wrenn/impl/netns/netnstest"
)

func TestMain(m *testing.M) {
	netnstest.Isolate() // the suite makes network namespaces
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	guest := firecrackertest.BuildGuest(t)
	firecrackertest.Run(t, firecrackertest.Build(t, "wrenn/impl/cmd/firecracker-qemu"), guest)
}

// TestConformanceOfFirecracker runs the same suite on the real thing, where there is one and a KVM.
func TestConformanceOfFirecracker(t *testing.T) {
	binary := need.File(t, "firecracker", os.Getenv("FIRECRACKER_BIN"), "set FIRECRACKER_BIN to a Firecracker that works here")
	firecrackertest.Run(t, binary, firecrackertest.BuildGuest(t))
}
