package shortcut

import (
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// wait is far beyond what anything here takes on an idle machine.
const wait = 30 * time.Second

// joined returns the two ends of a connection; the first one's buffer is as small as size allows, 0 being the default.
func joined(t *testing.T, size int) (ours, theirs *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	s, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(); _ = s.Close() })
	ours, theirs = c.(*net.TCPConn), s.(*net.TCPConn)
	require.NoError(t, theirs.SetReadBuffer(4096))
	if size > 0 {
		require.NoError(t, ours.SetWriteBuffer(size))
	}
	return ours, theirs
}

// TestAShortWriteNeverWaitsWhereThereIsRoom, up to a socket that is full, with any buffer, and for writes of any length.
func TestAShortWriteNeverWaitsWhereThereIsRoom(t *testing.T) {
	for _, buffer := range []int{0, 16 << 10, 64 << 10} {
		for _, size := range []int{1, 40, Short} {
			if buffer == 0 && size == 1 {
				continue // some million
			}
			ours, theirs := joined(t, buffer)
			room := RoomOf(ours)
			require.NotNil(t, room)
			written := 0
			for piece, full := make([]byte, size), 0; full < 20 && written < 64<<20; {
				if !room() {
					full++ // the kernel may yet send some
					time.Sleep(5 * time.Millisecond)
					continue
				}
				full = 0
				require.NoError(t, ours.SetWriteDeadline(time.Now().Add(wait))) // which one that waits would meet
				n, err := ours.Write(piece)
				require.NoError(t, err, "after %d bytes by %d", written, size)
				written += n
			}
			t.Logf("%d bytes by %d", written, size)
			require.Less(t, written, 64<<20, "nobody reads")
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			assert.Eventually(t, room, wait, time.Millisecond, "it is read")
		}
	}
}

func TestWhereRoomIsNotKnown(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	assert.Nil(t, RoomOf(a))
	ours, theirs := joined(t, 0)
	room := RoomOf(ours)
	require.True(t, room())
	require.True(t, RoomOf(tls.Client(ours, &tls.Config{}))(), "TLS over it")
	require.NoError(t, theirs.SetLinger(0))
	require.NoError(t, theirs.Close())
	assert.Eventually(t, func() bool { return !room() }, wait, time.Millisecond, "it was reset")
	require.NoError(t, ours.Close())
	assert.False(t, room(), "it is closed")
}

// TestItemsKeepTheirOrder whether they go through the queue or past it, and two are never being sent at a time.
func TestItemsKeepTheirOrder(t *testing.T) {
	const items = 20_000
	var (
		p      Path[int]
		queue  = make(chan int, 16)
		sent   []int // not guarded but by p
		beside int
		past   int
		wg     sync.WaitGroup
	)
	opened := make(chan struct{})
	wg.Go(func() {
		<-opened
		for item := range queue {
			assert.NoError(t, p.Send(item))
			if item%7 == 0 {
				assert.NoError(t, p.Beside(func() error { beside++; return nil }))
			}
		}
	})
	for i := range items {
		if i == 10 { // some wait by then
			assert.Zero(t, past, "it was closed")
			p.Open(func(i int) error { sent = append(sent, i); return nil }, func() bool { return rand.IntN(3) > 0 })
			close(opened)
		}
		if p.Past(i, rand.IntN(Short+2)) {
			past++
		} else {
			p.Queue()
			queue <- i
		}
		if rand.IntN(50) == 0 {
			time.Sleep(10 * time.Microsecond)
		}
	}
	close(queue)
	wg.Wait()
	require.Equal(t, items, len(sent))
	for i, item := range sent {
		require.Equal(t, i, item)
	}
	assert.Positive(t, past)
	assert.Less(t, past, items)
	assert.Positive(t, beside)
}

func TestWhatMayNotGoPastTheQueue(t *testing.T) {
	var p Path[int]
	assert.False(t, p.Past(1, 0), "it is closed")
	room, failure := true, error(nil)
	var sent []int
	send := func(i int) error { sent = append(sent, i); return failure }
	p.Open(send, nil)
	assert.False(t, p.Past(1, 0), "nobody knows of room")
	p.Open(send, func() bool { return room })
	assert.True(t, p.Past(1, Short))
	assert.False(t, p.Past(2, Short+1), "it is long")
	room = false
	assert.False(t, p.Past(2, 1), "there is no room")
	room = true
	p.Queue()
	assert.False(t, p.Past(3, 1), "another waits")
	require.NoError(t, p.Send(2))
	require.NoError(t, p.Beside(func() error {
		assert.False(t, p.Past(3, 1), "somebody sends")
		return nil
	}))
	assert.True(t, p.Past(3, 1))
	failure = errors.New("broken")
	assert.False(t, p.Past(4, 1), "it could not be sent")
	failure = nil
	assert.False(t, p.Past(4, 1), "nor can the next")
	p.Open(send, func() bool { return room })
	p.Close()
	assert.False(t, p.Past(4, 1), "it is closed")
	assert.Equal(t, []int{1, 2, 3, 4}, sent)
}

// TestCloseWaitsForWhoSends, since what is sent to may be gone after it.
func TestCloseWaitsForWhoSends(t *testing.T) {
	var p Path[int]
	sending, goOn, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.Open(func(int) error { close(sending); <-goOn; return nil }, func() bool { return true })
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { assert.True(t, p.Past(1, 1)) })
	<-sending
	wg.Go(func() { p.Close(); close(closed) })
	select {
	case <-closed:
		assert.Fail(t, "it did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	<-closed
}
