package main

import (
	"testing"

	"wrenn/e2e/harness"
)

// TestMain gives the tests a host of their own, with nothing but lo, and lets no other suite that runs an
// agent run beside them.
func TestMain(m *testing.M) { harness.MainOnOwnHost(m) }

func program(tb testing.TB) string {
	tb.Helper()
	return harness.Procvmm(tb)
}
