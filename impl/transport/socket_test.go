package transport

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// optionOf reads a TCP option of a connection.
func optionOf(t *testing.T, c net.Conn, name int) int {
	t.Helper()
	return get(t, c, unix.IPPROTO_TCP, name)
}

func get(t *testing.T, c net.Conn, level, name int) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var v int
	var inner error
	require.NoError(t, raw.Control(func(fd uintptr) { v, inner = unix.GetsockoptInt(int(fd), level, name) }))
	require.NoError(t, inner)
	return v
}

// requireMarks looks at what decides about a packet's turn, on the card and on Linux routers.
func requireMarks(t *testing.T, c net.Conn, on bool, name string) {
	t.Helper()
	tos, priority := 0, 0
	if on {
		tos, priority = 0x10, 6
	}
	assert.Equal(t, priority, get(t, c, unix.SOL_SOCKET, unix.SO_PRIORITY), name)
	assert.Equal(t, tos, get(t, c, unix.IPPROTO_IP, unix.IP_TOS), name)
}

func requireProbes(t *testing.T, c net.Conn, name string) {
	t.Helper()
	assert.Equal(t, 15, optionOf(t, c, unix.TCP_KEEPIDLE), name)
	assert.Equal(t, 15, optionOf(t, c, unix.TCP_KEEPINTVL), name)
	assert.Equal(t, 3, optionOf(t, c, unix.TCP_KEEPCNT), name)
}

// TestT08_DialledConnections: who may give up on a peer, and whose queue is short.
func TestT08_DialledConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	for name, want := range map[string]struct {
		dial           func(ctx context.Context, network, addr string) (net.Conn, error)
		timeout, lowat int
	}{
		"rpc": {NewRPCTransport().DialContext, userTimeout, 0}, "stream": {NewStreamTransport().DialContext, userTimeout, notSentLowat},
		"stream, a proxy's": {NewStreamProxyTransport().DialContext, userTimeout, notSentLowat},
		"proxy":             {NewProxyTransport().DialContext, 0, 0}, "boot": {NewBootTransport().DialContext, 0, 0}, "guest": {DialGuest, 0, 0},
	} {
		c, err := want.dial(t.Context(), "tcp", l.Addr().String())
		require.NoError(t, err)
		requireProbes(t, c, name)
		assert.Equal(t, want.timeout, optionOf(t, c, unix.TCP_USER_TIMEOUT), name)
		assert.Equal(t, want.lowat, lowatOf(t, c), name)
		requireMarks(t, c, want.lowat != 0, name)
		require.NoError(t, c.Close())
	}
}

// lowatOf is 0 for the kernel's default, which is no bound.
func lowatOf(t *testing.T, c net.Conn) int {
	if v := optionOf(t, c, unix.TCP_NOTSENT_LOWAT); v > 0 && uint32(v) < 1<<31-1 {
		return v
	}
	return 0
}

func TestT08_AcceptedConnections(t *testing.T) {
	for kind, want := range map[string]struct{ timeout, lowat int }{"api": {userTimeout, notSentLowat}, "proxy": {}} {
		conns := make(chan net.Conn, 1)
		handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/stream" {
				PreferLatency(r)
			} else {
				PreferThroughput(r)
			}
			conns <- r.Context().Value(connKey{}).(*served).TCPConn
		})
		var url string
		if kind == "api" {
			url = serve(t, NewServer(handler))
		} else {
			url = serve(t, NewProxyServer(handler))
		}
		tr := NewRPCTransport()
		for i, path := range []string{"/", "/stream", "/"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
			require.NoError(t, err)
			res, err := tr.RoundTrip(req)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			c := <-conns
			requireProbes(t, c, path)
			assert.Equal(t, want.timeout, optionOf(t, c, unix.TCP_USER_TIMEOUT))
			requireMarks(t, c, path == "/stream", path)
			if i == 0 {
				assert.Equal(t, want.lowat, lowatOf(t, c))
			} else {
				assert.Equal(t, notSentLowat, lowatOf(t, c), "which is not undone")
			}
		}
		tr.CloseIdleConnections()
	}
	foreign := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil) // of no server of ours
	PreferThroughput(foreign)
	PreferLatency(foreign).Sent(1)
}

// TestT08_AFloodIsNoKeystroke: who prints without end does not keep others from a card, and whoever types on the
// same terminal afterwards passes them again.
func TestT08_AFloodIsNoKeystroke(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	synctest.Test(t, func(t *testing.T) {
		ctx := accepted(nil)(t.Context(), c)
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		flow := PreferLatency(r)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			flow.Sent(64 << 10)
			requireMarks(t, c, true, "screens that are painted ten times a second")
		}
		for range 1000 {
			time.Sleep(time.Millisecond)
			flow.Sent(32 << 10)
		}
		requireMarks(t, c, false, "32 MB a second")
		time.Sleep(100 * time.Millisecond)
		flow.Sent(1)
		requireMarks(t, c, false, "a pause of a tenth of a second")
		time.Sleep(2 * time.Second)
		flow.Sent(1)
		requireMarks(t, c, true, "a key, two seconds later")
		flow.Sent(1 << 20)
		PreferThroughput(r)
		PreferThroughput(r)
		requireMarks(t, c, false, "a download")
		PreferLatency(r)
		requireMarks(t, c, true, "the connection's next stream")
	})
}

// TestT08_AShortQueueOnTheWriter measures what waits, unsent, ahead of the next byte when a peer does not read.
func TestT08_AShortQueueOnTheWriter(t *testing.T) {
	unsent := func(options ...option) int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		c, err := dialer(wait, options...).DialContext(t.Context(), "tcp", l.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		peer, err := l.Accept()
		require.NoError(t, err)
		defer peer.Close()
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
		for err == nil {
			_, err = c.Write(make([]byte, 32<<10))
		}
		raw, err := c.(*net.TCPConn).SyscallConn()
		require.NoError(t, err)
		n := 0
		require.NoError(t, raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQNSD) }))
		require.NoError(t, err)
		return n
	}
	long, short := unsent(), unsent(nimbly)
	t.Logf("unsent by the kernel's own measure %d bytes, with TCP_NOTSENT_LOWAT %d", long, short)
	assert.LessOrEqual(t, short, notSentLowat+32<<10)
	assert.Greater(t, long, 2*short)
}

// TestT04_ADeadPeerIsNoticed takes the peer's packets away by closing its window for good, which the same
// timer ends, on a shorter clock.
func TestT04_ADeadPeerIsNoticed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := dialer(wait, option{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 500}).DialContext(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	peer, err := l.Accept()
	require.NoError(t, err)
	defer peer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	for err == nil {
		_, err = c.Write(make([]byte, 64<<10))
	}
	require.NoError(t, ctx.Err(), "the connection was not given up")
	require.ErrorIs(t, err, unix.ETIMEDOUT)
}

// TestRoomOfARequestsConnection, by each of our servers, and once the connection has been taken over.
func TestRoomOfARequestsConnection(t *testing.T) {
	rooms := make(chan func() bool, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		room := RoomOf(r)
		c, _, err := http.NewResponseController(w).Hijack()
		if assert.NoError(t, err) {
			assert.True(t, room())
			assert.NoError(t, c.Close())
		}
		rooms <- room
	})
	for name, serve := range map[string]func(net.Listener) error{"own": NewServer(h).Serve, "proxy": NewProxyServer(h).Serve} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		over := make(chan error, 1)
		go func() { over <- serve(Listen(l, nil)) }()
		_, _, err = exchangeOne(t, NewProxyTransport(), "POST", l.Addr().String(), nil)
		require.Error(t, err)
		room := <-rooms
		require.NotNil(t, room, name)
		assert.False(t, room(), "%s: it is closed", name)
		require.NoError(t, l.Close())
		<-over
	}
	assert.Nil(t, RoomOf(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)))
}
