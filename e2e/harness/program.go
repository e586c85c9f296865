package harness

import (
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// programs are what the suites bring, compiled once per run of the tests.
var programs = map[string]func() error{
	"procvmm": sync.OnceValue(func() error { return compile("procvmm", "wrenn/e2e/harness/procvmm") }),
	"drift":   sync.OnceValue(func() error { return compile("drift", "wrenn/guest/drift") }),
}

func compile(name, pkg string) error {
	if _, err := exec.LookPath("go"); err != nil {
		return nil //nolint:nilerr // need.File says what is missing
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", "build/test/"+name, pkg)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd.Run()
}

// Procvmm returns the path of the VMM without VMs. Where Go is missing (a machine that was brought a compiled
// suite) it must be in build/test.
func Procvmm(tb testing.TB) string { return program(tb, "procvmm") }

// Drift returns the path of the program that notices in a guest when its machine has drifted.
func Drift(tb testing.TB) string { return program(tb, "drift") }

func program(tb testing.TB, name string) string {
	tb.Helper()
	require.NoError(tb, programs[name]())
	return need.File(tb, "build", Build(tb, "test/"+name), "run the suite where Go is, or bring build/test/"+name)
}
