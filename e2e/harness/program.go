package harness

import (
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// procvmm compiles the VMM without VMs once per run of the tests.
var procvmm = sync.OnceValue(func() error {
	if _, err := exec.LookPath("go"); err != nil {
		return nil // need.File says what is missing
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", "build/test/procvmm", "wrenn/e2e/harness/procvmm")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd.Run()
})

// Procvmm returns the path of the VMM without VMs. Where Go is missing (a machine that was brought a compiled
// suite) it must be in build/test.
func Procvmm(tb testing.TB) string {
	tb.Helper()
	require.NoError(tb, procvmm())
	return need.File(tb, "build", Build(tb, "test/procvmm"), "run `go build -o build/test/procvmm ./e2e/harness/procvmm`")
}
