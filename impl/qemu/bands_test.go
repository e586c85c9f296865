package qemu

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns"
)

// TestT07_MarkedPacketsWaitForNoOthers types beside a transfer that fills a limited direction's queue, with and
// without the mark, and asserts which waits for the transfer, never how long.
func TestT07_MarkedPacketsWaitForNoOthers(t *testing.T) {
	n, guest := newLink(t)
	limit := &rateLimiter{Bandwidth: &tokenBucket{Size: 256 << 10, RefillTime: 128}} // 2 MiB a second: its queue is full for 125 ms
	var s shaper
	for _, tc := range []struct {
		name      string
		fromGuest bool
		limited   nic
	}{
		{"what the guest sends", true, nic{HostDevName: n.HostDevName, TxRateLimiter: limit}},
		{"what it receives", false, nic{HostDevName: n.HostDevName, RxRateLimiter: limit}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.NoError(t, s.apply([]nic{tc.limited}))
			stop := flood(t, guest, tc.fromGuest)
			plain := typeAlong(t, guest, tc.fromGuest, 0)
			marked := typeAlong(t, guest, tc.fromGuest, lowDelay)
			stop()
			t.Logf("echo beside a transfer: marked %v, unmarked %v", marked, plain)
			assert.Less(t, 4*marked, 3*plain) // a frame of 64 KiB that has begun takes 31 ms of it
			require.NoError(t, s.apply([]nic{{HostDevName: n.HostDevName}}))
		})
	}
	require.NoError(t, s.remove())
}

// dial joins host and guest by TCP.
func dial(t *testing.T, guest *netns.Handle) (outside, inside net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", hostEnd+":0")
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, guest.Do(func() (err error) {
		inside, err = net.DialTimeout("tcp4", l.Addr().String(), 10*time.Second)
		return err
	}))
	outside, err = l.Accept()
	require.NoError(t, err)
	for _, conn := range []net.Conn{outside, inside} {
		require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
		t.Cleanup(func() { _ = conn.Close() })
	}
	return outside, inside
}

// flood sends without end in one direction until it is stopped, and is under way when it returns.
func flood(t *testing.T, guest *netns.Handle, fromGuest bool) (stop func()) {
	t.Helper()
	from, to := dial(t, guest)
	if fromGuest {
		from, to = to, from
	}
	// Reno fills a queue until it drops, as Linux's and most systems' default does; BBR would keep it short.
	option(t, from, func(fd int) error { return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") })
	var ends sync.WaitGroup
	ends.Go(func() {
		for piece := make([]byte, 64<<10); ; {
			if _, err := from.Write(piece); err != nil {
				return
			}
		}
	})
	_, err := io.CopyN(io.Discard, to, 1<<20) // more than passes at once
	require.NoError(t, err)
	ends.Go(func() { _, _ = io.Copy(io.Discard, to) })
	return func() {
		_, _ = from.Close(), to.Close()
		ends.Wait()
	}
}

func option(t *testing.T, conn net.Conn, set func(fd int) error) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var failed error
	require.NoError(t, raw.Control(func(fd uintptr) { failed = set(int(fd)) }))
	require.NoError(t, failed)
}

// typeAlong is the median time in which a byte comes back, whose way in the limited direction has that mark.
func typeAlong(t *testing.T, guest *netns.Handle, fromGuest bool, mark int) time.Duration {
	t.Helper()
	outside, inside := dial(t, guest)
	marked := outside
	if fromGuest {
		marked = inside
	}
	option(t, marked, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, mark) })
	var echo sync.WaitGroup
	echo.Go(func() { _, _ = io.Copy(inside, inside) })
	defer echo.Wait()
	defer outside.Close()
	var took []time.Duration
	for key := make([]byte, 1); len(took) < 15; {
		begin := time.Now()
		_, err := outside.Write(key)
		require.NoError(t, err)
		_, err = io.ReadFull(outside, key)
		require.NoError(t, err)
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return took[len(took)/2]
}
