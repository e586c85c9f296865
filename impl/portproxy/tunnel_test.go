package portproxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tunnelOf joins two pipes and returns their outer ends.
func tunnelOf(t *testing.T, idle time.Duration, done func()) (client, guest net.Conn) {
	t.Helper()
	ts := &tunnels{idle: idle}
	client, inner := net.Pipe()
	guest, outer := net.Pipe()
	tunnel := &tunnel{client: inner, guest: outer, done: done}
	require.True(t, ts.add(tunnel))
	ts.join(tunnel)
	return client, guest
}

func TestP07_AnIdleTunnelEndsAndAQuietOneLives(t *testing.T) {
	const idle = time.Hour
	for name, direction := range map[string]int{"what the client sends": 0, "what the guest sends": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ended time.Time
				client, guest := tunnelOf(t, idle, func() { ended = time.Now() })
				ends := []net.Conn{client, guest}
				for range 5 { // one direction alone keeps it alive
					time.Sleep(idle - time.Minute)
					go func() { _, _ = ends[direction].Write([]byte("x")) }()
					_, err := io.ReadFull(ends[1-direction], make([]byte, 1))
					require.NoError(t, err)
				}
				last := time.Now()
				_, err := client.Read(make([]byte, 1))
				require.Error(t, err)
				_, err = guest.Read(make([]byte, 1))
				require.Error(t, err)
				synctest.Wait()
				assert.Equal(t, idle, ended.Sub(last))
			})
		})
	}
}

func TestP07_TheIdleLimitIsASetting(t *testing.T) {
	c := newHTTPChain(t, upgradeGuest(func(_ net.Conn, r *bufio.Reader) { _, _ = r.ReadByte() }), func(c *chain) { c.idle = 50 * time.Millisecond })
	_, r := c.upgrade()
	_, err := r.ReadByte()
	assert.ErrorIs(t, err, io.EOF)
}

// What comes right behind a header, on either side, is part of the tunnel; on either plane.
func TestP07_BytesBehindTheHeadersAreNotLost(t *testing.T) {
	for _, host := range []string{byName, "Host: 49983-abc.x"} {
		c := newChain(t, rawGuest(t, func(string) string {
			return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nX-Own: 1\r\nSet-Cookie: a=b\r\n\r\nright behind"
		}))
		_, r := c.raw("GET /ws HTTP/1.1", host, "Connection: upgrade", "Upgrade: websocket")
		res, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		assert.Equal(t, http.Header{"Connection": {"Upgrade"}, "Upgrade": {"WebSocket"}, "X-Own": {"1"}, "Set-Cookie": {"a=b"}}, res.Header)
		rest, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.Equal(t, "right behind", string(rest))

		c = newHTTPChain(t, upgradeGuest(func(conn net.Conn, r *bufio.Reader) { _, _ = io.Copy(conn, r) }))
		conn, r := c.raw("GET /ws HTTP/1.1", host, "Connection: Upgrade", "Upgrade: websocket", "", "first words")
		res, err = http.ReadResponse(r, nil)
		require.NoError(t, err)
		assert.Equal(t, http.StatusSwitchingProtocols, res.StatusCode)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		rest, err = io.ReadAll(r)
		require.NoError(t, err)
		assert.Equal(t, "first words\r\n\r\n", string(rest))
	}
}

func TestP07_TheGuestMayCloseItsHalfFirst(t *testing.T) {
	got := make(chan string, 1)
	c := newHTTPChain(t, upgradeGuest(func(conn net.Conn, r *bufio.Reader) {
		_ = conn.(*net.TCPConn).CloseWrite()
		rest, _ := io.ReadAll(r)
		got <- string(rest)
	}))
	conn, r := c.upgrade()
	_, err := r.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	_, err = io.WriteString(conn, "still heard")
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	assert.Equal(t, "still heard", <-got)
}

// What the client has sent before it ended arrives, also where the guest had ended before and takes its time.
func TestP07_TheLastWordsArrive(t *testing.T) {
	const size = 4 << 20
	got := make(chan int64, 1)
	c := newHTTPChain(t, upgradeGuest(func(conn net.Conn, r *bufio.Reader) {
		_ = conn.(*net.TCPConn).CloseWrite()
		time.Sleep(200 * time.Millisecond)
		n, err := io.Copy(io.Discard, r)
		assert.NoError(t, err)
		got <- n
	}))
	conn, r := c.upgrade()
	_, err := r.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	_, err = io.Copy(conn, io.LimitReader(zeros{}, size))
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	assert.EqualValues(t, size, <-got)
}

func TestP07_AnotherProtocolThanAskedForIsNoUpgrade(t *testing.T) {
	for name, tc := range map[string]struct{ asked, switched []string }{
		"another":     {[]string{"Connection: Upgrade", "Upgrade: websocket"}, []string{"Connection: Upgrade", "Upgrade: h2c"}},
		"not asked":   {nil, []string{"Connection: Upgrade", "Upgrade: h2c"}},
		"to nowhere":  {nil, nil},
		"asked, none": {[]string{"Connection: Upgrade", "Upgrade: websocket"}, nil},
	} {
		answer := strings.Join(append([]string{"HTTP/1.1 101 Switching Protocols"}, tc.switched...), "\r\n") + "\r\n\r\n"
		c := newChain(t, rawGuest(t, func(string) string { return answer }))
		res, _ := c.get("/", append([]string{byName}, tc.asked...)...)
		assert.Equal(t, http.StatusBadGateway, res.StatusCode, name)
		g, _ := c.host.guests.Load("abc")
		assert.Eventually(t, func() bool { return g.(*guest).inFlight.Load() == 0 && c.connections("abc") == 0 }, wait, 5*time.Millisecond, name)
	}
}

// An upgrade that is refused is an answer like any other.
func TestP07_ARefusedUpgradePasses(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusUpgradeRequired) }))
	res, body := c.get("/", byName, "Connection: Upgrade", "Upgrade: websocket")
	assert.Equal(t, http.StatusUpgradeRequired, res.StatusCode)
	assert.Equal(t, "no\n", body)
	g, _ := c.host.guests.Load("abc")
	assert.Eventually(t, func() bool { return g.(*guest).inFlight.Load() == 0 }, wait, 5*time.Millisecond)
}
