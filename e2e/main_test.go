// Package e2e_test drives Wrenn as its users do: a real `wrenn up`, real VMs, the public API and nothing
// else.
package e2e_test

import (
	"fmt"
	"os"
	"testing"

	"wrenn/e2e/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := harness.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
