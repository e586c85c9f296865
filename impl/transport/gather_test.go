package transport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// segments is how many segments with data c has sent.
func segments(t *testing.T, c *served) int {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	var info *unix.TCPInfo
	require.NoError(t, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	require.NoError(t, err)
	return int(info.Data_segs_out)
}

// TestAChunkLeavesAsOneSegment where it would be three, and nothing of it is lost or out of place.
func TestAChunkLeavesAsOneSegment(t *testing.T) {
	const pieces = 8
	piece := bytes.Repeat([]byte("wrenn..."), 4<<10) // 32 KiB; a segment of loopback holds 64
	for gathered, each := range map[bool]int{true: 1, false: 3} {
		sent, taken := make(chan int, 1), make(chan struct{})
		url := serve(t, NewProxyServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			g, conn := GatherOf(r), r.Context().Value(connKey{}).(*served)
			if !gathered {
				g = nil
			}
			assert.NoError(t, http.NewResponseController(w).Flush()) // the header goes first
			before := segments(t, conn)
			for range pieces {
				g.Begin()
				_, err := w.Write(piece)
				assert.NoError(t, err)
				assert.NoError(t, http.NewResponseController(w).Flush())
				g.End()
				<-taken // so that nothing waits in the kernel, where it would be joined
			}
			sent <- segments(t, conn) - before
		})))
		res, err := http.Get(url)
		require.NoError(t, err)
		for range pieces {
			got := make([]byte, len(piece))
			_, err := io.ReadFull(res.Body, got)
			require.NoError(t, err)
			assert.Equal(t, piece, got)
			taken <- struct{}{}
		}
		require.NoError(t, res.Body.Close())
		assert.InDelta(t, pieces*each, <-sent, 2, "gathered: %v", gathered) // the first meet small windows
	}
}

// TestWhatIsTooLargeToGatherGoesThrough, in its order.
func TestWhatIsTooLargeToGatherGoesThrough(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 3*gatherBytes/16)
	url := serve(t, NewProxyServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := GatherOf(r)
		g.Begin()
		defer g.End()
		for _, p := range [][]byte{[]byte("first"), large, []byte("last")} {
			_, err := w.Write(p)
			assert.NoError(t, err)
			assert.NoError(t, http.NewResponseController(w).Flush())
		}
	})))
	res, err := http.Get(url)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, errors.Join(err, res.Body.Close()))
	assert.Equal(t, "first"+string(large)+"last", string(body))
}

// TestAGatheredWriteThatFailsIsTold by the next one, which would otherwise seem to succeed.
func TestAGatheredWriteThatFailsIsTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	accepted, err := Listen(l, nil).Accept()
	require.NoError(t, err)
	conn := accepted.(*served)
	g := &Gather{conn}
	g.Begin()
	_, err = conn.Write([]byte("held"))
	require.NoError(t, err)
	require.NoError(t, conn.SetWriteDeadline(time.Unix(1, 0)))
	g.End()
	require.NoError(t, conn.SetWriteDeadline(time.Time{}))
	_, err = conn.Write([]byte("after"))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "something is missing before it")
	require.NoError(t, conn.Close())
}
