package transport

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestT07_WhatIsHeldBackIsSentInPieces that the kernel does not join, and all of it arrives in order.
func TestT07_WhatIsHeldBackIsSentInPieces(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // where a segment holds 64 KB
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	accepted, err := Listen(l, NewPacer()).Accept()
	require.NoError(t, err)
	defer accepted.Close()
	conn := accepted.(*served)
	got := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(client)
		got <- all
	}()

	m := &meter{}
	var want []byte
	write := func(level float64, gathered ...int) (segments int) {
		m.holdBack(conn, level)
		part := make([]byte, 256<<10)
		_, _ = rand.Read(part)
		want = append(want, part...)
		before := tcpInfo(conn.TCPConn)
		rest, gather := part, &Gather{conn}
		for _, size := range gathered {
			gather.Begin()
			n, err := conn.Write(rest[:size])
			require.NoError(t, err)
			require.Equal(t, size, n)
			rest = rest[size:]
			gather.End()
		}
		n, err := conn.Write(rest)
		require.NoError(t, err)
		require.Equal(t, len(rest), n)
		var after *unix.TCPInfo
		require.Eventually(t, func() bool {
			after = tcpInfo(conn.TCPConn)
			return after.Bytes_acked-before.Bytes_acked == uint64(len(part))
		}, time.Minute, time.Millisecond)
		return int(after.Data_segs_out - before.Data_segs_out)
	}
	assert.Less(t, write(0), 30)
	assert.GreaterOrEqual(t, write(1e6), 256<<10/leastPiece)
	assert.GreaterOrEqual(t, write(8e6), 256<<10/8000)
	const half = gatherBytes / 2 // is held until its end; what is larger than there is room for is not
	assert.GreaterOrEqual(t, write(1e6, half, half, half, half, half, half), 256<<10/leastPiece)
	assert.GreaterOrEqual(t, write(1e6, 2*gatherBytes, 2*gatherBytes), 256<<10/leastPiece)
	assert.Less(t, write(0), 30)
	require.NoError(t, conn.CloseWrite())
	assert.True(t, bytes.Equal(want, <-got), "what arrived is not what was sent")
}

// TestT07_PiecesFailAsWholeWritesDo by a deadline and when the client has gone.
func TestT07_PiecesFailAsWholeWritesDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	much := make([]byte, 64<<20) // more than both ends have room for
	for _, level := range []float64{0, 1e6} {
		client, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		accepted, err := Listen(l, NewPacer()).Accept()
		require.NoError(t, err)
		conn := accepted.(*served)
		(&meter{}).holdBack(conn, level)
		require.NoError(t, conn.SetWriteDeadline(time.Now().Add(time.Second)))
		n, err := conn.Write(much)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Positive(t, n, "what was sent before counts")

		require.NoError(t, conn.SetWriteDeadline(time.Time{}))
		require.NoError(t, client.Close()) // with bytes unread, which is a reset
		require.Eventually(t, func() bool { _, err = conn.Write(make([]byte, 1)); return err != nil }, time.Minute, time.Millisecond)
		var refused *net.OpError
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, "write", refused.Op)
		require.NoError(t, conn.Close())
		_, err = conn.Write(make([]byte, 1))
		assert.ErrorIs(t, err, net.ErrClosed)
	}
}

// TestT07_APieceLastsAMillisecond as far as two packets and what is joined anyway allow.
func TestT07_APieceLastsAMillisecond(t *testing.T) {
	assert.Equal(t, []int64{0, leastPiece, leastPiece, 5000, 0}, []int64{pieceOf(0), pieceOf(levelFloor), pieceOf(1e6), pieceOf(5e6), pieceOf(1e9)})
}
