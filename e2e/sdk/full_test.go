package sdk

import (
	"testing"
	"time"

	"wrenn/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestU01_SDKUnchanged runs full.test.mjs against a `wrenn up` of its own.
func TestU01_SDKUnchanged(t *testing.T) {
	sdk := needSDK(t)
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	sdk.file("full.test.mjs", 5*time.Minute, "E2B_API_URL="+s.APIURL, "E2B_SANDBOX_URL="+s.SandboxURL, "E2B_API_KEY="+s.APIKey)
	s.Stop()
	before.Same(t)
}
