package main

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// wire is a pair of files between which frames stay whole.
func wire(t *testing.T) (in, out *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	in, out = os.NewFile(uintptr(fds[0]), "in"), os.NewFile(uintptr(fds[1]), "out")
	t.Cleanup(func() { _, _ = in.Close(), out.Close() })
	return in, out
}

// TestN07_MarkedFramesKeepToTheLimit, too, though they may go ahead: who marks everything gets no more than others. A slow
// machine carries less.
func TestN07_MarkedFramesKeepToTheLimit(t *testing.T) {
	const rate, burst, frame = 256 << 10, 64 << 10, 8 << 10 // a frame waits for 31 ms, in which thousands could go ahead
	for name, marks := range map[string]func(i uint32) byte{
		"none": func(uint32) byte { return 0 },
		"all":  func(uint32) byte { return 0x10 },
		"those behind the burst": func(i uint32) byte {
			if i < 2*burst/frame {
				return 0
			}
			return 0x10
		},
	} {
		t.Run(name, func(t *testing.T) {
			guest, from := wire(t)
			to, host := wire(t)
			start := time.Now()
			carry(from, to, newBucket(&limiter{Bandwidth: &tokenBucket{Size: burst, RefillTime: 1000 * burst / rate}}, start))
			var passed atomic.Int64
			go copyFrames(host, func(f []byte) { passed.Add(int64(len(f))) })
			for i := uint32(0); time.Since(start) < 500*time.Millisecond; i++ {
				_, err := guest.Write(frameOf(frame, marks(i), i))
				require.NoError(t, err)
			}
			got := passed.Load()
			assert.LessOrEqual(t, float64(got), burst+rate*(time.Since(start)+leastWait).Seconds()+2*frame)
			assert.Greater(t, got, int64(burst), "it goes on after its burst")
		})
	}
}
