package ground

import (
	"context"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/need"
)

// visitor is a thread that stays on a host, so that a connection from there costs no more than one from here.
type visitor struct {
	jobs chan func()
}

func newVisitor(tb testing.TB, h *harness.Host) *visitor {
	v := &visitor{jobs: make(chan func())}
	var ended sync.WaitGroup
	entered := make(chan struct{})
	ended.Go(func() {
		_ = h.Do(func() error {
			close(entered)
			for job := range v.jobs {
				job()
			}
			return nil
		})
	})
	<-entered
	tb.Cleanup(func() { close(v.jobs); ended.Wait() })
	return v
}

// DialContext connects from the host. Connections are made one after the other.
func (v *visitor) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	done := make(chan struct{})
	v.jobs <- func() {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		close(done)
	}
	<-done
	return conn, err
}

// build compiles bench/actor once per run of the tests.
var build = sync.OnceValue(func() error {
	if _, err := exec.LookPath("go"); err != nil {
		return nil // need.File says what is missing
	}
	cmd := exec.Command("go", "build", "-o", "../build/test/actor", "wrenn/bench/actor")
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd.Run()
})

// actor returns the path of bench/actor. Where Go is missing (a machine that was brought a compiled suite) it
// must be in build/test.
func actor(tb testing.TB) string {
	tb.Helper()
	require.NoError(tb, build())
	return need.File(tb, "build", harness.Build(tb, "test/actor"), "run `go build -o build/test/actor ./bench/actor`")
}
