package netns_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns"
)

func exitGoroutine() { runtime.Goexit() }

// dropSysAdmin takes from the calling thread alone the right to change its namespace.
func dropSysAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	data[0].Permitted &^= 1 << unix.CAP_SYS_ADMIN
	return unix.Capset(&header, &data[0])
}

// Only a true failure shows it: the thread loses its right to return while it is inside.
func TestN11_ThreadThatCannotReturnIsDestroyed(t *testing.T) {
	ns := create(t, "trap")
	home := current()
	var stuck []int
	for len(stuck) < 3 {
		var thread int
		err := ns.Do(func() error {
			thread = unix.Gettid()
			// The runtime parks the process's first thread for ever instead of ending it.
			if thread == os.Getpid() {
				return nil
			}
			stuck = append(stuck, thread)
			return dropSysAdmin()
		})
		require.NoError(t, err, "the function's own result stands")
	}
	for _, thread := range stuck {
		assert.Eventually(t, func() bool {
			_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread))
			return os.IsNotExist(err)
		}, 10*time.Second, 5*time.Millisecond, "thread %d is still there", thread)
	}
	assertAllThreadsIn(t, home)
}

func BenchmarkN11_Do(b *testing.B) {
	ns := create(b, "bench-do")
	for b.Loop() {
		if err := ns.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateDelete(b *testing.B) {
	create(b, "bench-warm-up")
	for b.Loop() {
		ns, err := netns.Create("bench-create")
		require.NoError(b, err)
		require.NoError(b, ns.Close())
		require.NoError(b, netns.Delete("bench-create"))
	}
}
