// Package e2e_test drives Wrenn as its users do: a real `wrenn up`, real VMs, the public API and nothing
// else.
package e2e_test

import (
	"testing"

	"wrenn/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
