package portproxy

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/transport"
)

// TestAPieceOfUnknownLengthLeavesInOneWrite: a guest's body in chunks comes to the client in as few segments as it was
// sent in, and not in three for each.
func TestAPieceOfUnknownLengthLeavesInOneWrite(t *testing.T) {
	const pieces = 8
	piece, taken := bytes.Repeat([]byte("wrenn..."), 4<<10), make(chan struct{})
	guest := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		assert.NoError(t, http.NewResponseController(w).Flush())
		for range pieces {
			_, err := w.Write(piece)
			assert.NoError(t, err)
			assert.NoError(t, http.NewResponseController(w).Flush())
			<-taken // so that pieces do not run together
		}
	}))
	defer guest.Close()
	at, err := url.Parse(guest.URL)
	require.NoError(t, err)
	direct := transport.NewProxyTransport()
	defer direct.CloseIdleConnections()
	var ts tunnels
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := transport.NewProxyServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := newPassage(w, r, at, "/")
		p.via, p.refine = direct, func(http.Header) {}
		ts.pass(p)
	}))
	go func() { _ = srv.Serve(transport.Listen(l, nil)) }()
	defer srv.Close()

	var client net.Conn
	rt := transport.NewProxyTransport()
	rt.DialContext = func(ctx context.Context, network, addr string) (_ net.Conn, err error) {
		client, err = new(net.Dialer).DialContext(ctx, network, addr)
		return client, err
	}
	defer rt.CloseIdleConnections()
	res, err := (&http.Client{Transport: rt}).Get("http://" + l.Addr().String())
	require.NoError(t, err)
	before, got := segmentsIn(t, client), make([]byte, len(piece))
	for range pieces {
		_, err := io.ReadFull(res.Body, got)
		require.NoError(t, err)
		assert.Equal(t, piece, got)
		taken <- struct{}{}
	}
	// The guest's own server sends each in three, of which the proxy may read one or two by themselves.
	assert.LessOrEqual(t, segmentsIn(t, client)-before, 2*pieces+2)
	require.NoError(t, res.Body.Close())
}

// segmentsIn is how many segments with data have come.
func segmentsIn(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var info *unix.TCPInfo
	require.NoError(t, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	require.NoError(t, err)
	return int(info.Data_segs_in)
}
