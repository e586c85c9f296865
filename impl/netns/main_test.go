package netns_test

import (
	"testing"

	"go.uber.org/goleak"

	"wrenn/impl/netns/netnstest"
)

func TestMain(m *testing.M) {
	netnstest.Isolate()
	goleak.VerifyTestMain(m)
}
