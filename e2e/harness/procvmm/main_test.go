package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"wrenn/e2e/harness"
	"wrenn/impl/netns/netnstest"
)

// TestMain gives the tests a host of their own, with nothing but lo, and lets no other suite that runs an
// agent run beside them.
func TestMain(m *testing.M) {
	netnstest.Isolate()
	if lo, err := netlink.LinkByName("lo"); err == nil && os.Geteuid() == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			fmt.Fprintln(os.Stderr, "raise lo:", err)
			os.Exit(1)
		}
	}
	harness.Main(m)
}

func program(tb testing.TB) string {
	tb.Helper()
	return harness.Procvmm(tb)
}
