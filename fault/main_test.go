//go:build fault

package fault

import (
	"testing"

	"wrenn/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
