package portproxy_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(chainEnv) != "" {
		chainMain()
		return
	}
	goleak.VerifyTestMain(m)
}
