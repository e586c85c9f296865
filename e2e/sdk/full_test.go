package sdk

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/need"
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestU01_SDKUnchanged runs full.test.mjs against a `wrenn up` of its own.
func TestU01_SDKUnchanged(t *testing.T) {
	need.Program(t, "npm")
	needSDK(t)
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	runNode(t, "full.test.mjs", "E2B_API_URL="+s.APIURL, "E2B_SANDBOX_URL="+s.SandboxURL, "E2B_API_KEY="+s.APIKey)
	s.Stop()
	before.Same(t)
}

// runNode runs one file of Node's tests with the given variables.
func runNode(t *testing.T, file string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "--test", "--test-reporter=spec", file)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err, "the SDK's tests fail")
}
