package session

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/envdclient"
)

// TestT05_AStalledViewerIsCutOffAlone has one viewer stall while the program prints far more than all queues
// hold; the other one must get all of it.
func TestT05_AStalledViewerIsCutOffAlone(t *testing.T) {
	// Several times what queues and sockets hold: a terminal's messages are small.
	for path, size := range map[string]int{"/pty": 12 << 20, "/exec": 32 << 20} {
		t.Run(path[1:], func(t *testing.T) {
			d := open(t, Clocks{Patience: 3 * time.Second, Farewell: wait})
			live := d.start(path, fmt.Sprintf(`{"type":"start","cmd":"sh","args":["-c","echo ready; read x; head -c %d /dev/zero | tr '\\0' x; echo END; read y"],"stdin":true}`, size))
			live.until("ready")
			stalled := d.start(path, fmt.Sprintf(`{"type":"attach","pid":%d}`, live.pid))
			live.seen.Reset()
			live.seen.Grow(size + size/1000)
			live.input("\n")
			live.until("END")
			assert.Equal(t, size, strings.Count(live.seen.String(), "x"), "the live viewer misses output")
			// It reads again, early enough to be told, and after all that was queued.
			assert.Contains(t, stalled.fails(CloseTooSlow), "attach again")
			n := stalled.seen.Len()
			t.Logf("the stalled viewer got %d of %d bytes", n, size)
			assert.Less(t, n, size)
			if path == "/pty" {
				again := d.start(path, fmt.Sprintf(`{"type":"attach","pid":%d}`, live.pid))
				again.until("END")
			}
			live.input("\n")
			live.exits(0)
		})
	}
}

// TestT05_AStalledViewerOfShortLinesIsCutOffAlone: what is sent past the queue must not wait for a viewer either.
func TestT05_AStalledViewerOfShortLinesIsCutOffAlone(t *testing.T) {
	d := open(t, Clocks{Farewell: wait})
	const lines, rest = 10_000, 12 << 20 // the rest is more than queues hold, however little each message has
	live := d.start("/pty", fmt.Sprintf(`{"type":"start","cmd":"sh","args":["-c","stty -echo; echo ready; read x; i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); done; head -c %d /dev/zero | tr '\\0' x; echo END; read y"]}`, lines, rest))
	live.until("ready")
	d.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10) })
		}}
		return small.DialContext(ctx, network, addr)
	}
	stalled := d.start("/pty", fmt.Sprintf(`{"type":"attach","pid":%d}`, live.pid))
	live.seen.Reset()
	live.seen.Grow(rest + rest/100)
	live.input("\n")
	live.until("END")
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "%d\r\n", i)
	}
	want.WriteString(strings.Repeat("x", rest))
	assert.True(t, strings.HasPrefix(live.seen.String(), want.String()+"END"), "the live viewer misses output")
	assert.Contains(t, stalled.fails(CloseTooSlow), "attach again")
	got := strings.TrimPrefix(strings.TrimPrefix(stalled.seen.String(), "ready"), "\r\n")
	assert.True(t, strings.HasPrefix(want.String(), got), "a gap")
	assert.Less(t, len(got), want.Len())
	live.input("\n")
	live.exits(0)
}

// TestT05_NothingIsDroppedSilently has a viewer stall for a while, with a daemon that is patient: what it gets is
// the beginning of the output, without a gap, and then the reason.
func TestT05_NothingIsDroppedSilently(t *testing.T) {
	const patience = 200 * time.Millisecond
	d := openWith(t, Clocks{Patience: patience, Farewell: wait}, wait)
	v := d.start("/exec", `{"type":"start","cmd":"seq","args":["1","9000000"],"kill":true}`)
	time.Sleep(10 * patience)
	v.fails(CloseTooSlow)
	got := v.seen.String()
	require.NotEmpty(t, got)
	lines := strings.Split(got, "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != strconv.Itoa(i+1) {
			require.Fail(t, "a gap", "line %d is %q", i+1, line)
		}
	}
}

// TestT05_AViewerThatStaysStalledIsGone: the farewell is bounded, too.
func TestT05_AViewerThatStaysStalledIsGone(t *testing.T) {
	d := open(t, Clocks{Patience: 100 * time.Millisecond, Farewell: 200 * time.Millisecond})
	v := d.start("/exec", `{"type":"start","cmd":"sh","args":["-c","head -c 64000000 /dev/zero; sleep 300"],"kill":true}`)
	watch, err := d.guest.Attach(v.ctx, v.pid, false)
	require.NoError(t, err)
	for ended := false; !ended; { // the killing connection is over when the program is
		ev, err := watch.Next()
		require.NoError(t, err)
		ended = ev.Kind == envdclient.Ended
	}
	require.NoError(t, watch.Close())
	n := 0
	for err == nil {
		_, err = v.next()
		n = v.seen.Len()
	}
	assert.Less(t, n, 64000000)
}

// TestT04_AClientThatDoesNotAnswerIsGone: a quiet connection is probed.
func TestT04_AClientThatDoesNotAnswerIsGone(t *testing.T) {
	d := open(t, Clocks{Ping: 200 * time.Millisecond})
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "ws://"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(wait)))
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, res.StatusCode)
	first := []byte(`{"type":"start","cmd":"sleep","args":["300"]}`)
	_, err = conn.Write(append([]byte{0x81, 0x80 | byte(len(first)), 0, 0, 0, 0}, first...)) // masked with zeros
	require.NoError(t, err)
	rest, err := io.ReadAll(r) // never answers
	require.NoError(t, err, "the connection was not closed")
	assert.Contains(t, string(rest), "started")
	assert.Contains(t, string(rest), "\x89", "it was asked")
}

// TestT04_AQuietSessionOutlivesEveryClock runs a quiet and a busy terminal for longer than all clocks of a
// session together.
func TestT04_AQuietSessionOutlivesEveryClock(t *testing.T) {
	clocks := Clocks{Open: 100 * time.Millisecond, Ping: 100 * time.Millisecond, Patience: 100 * time.Millisecond, Farewell: 100 * time.Millisecond}
	d := open(t, clocks)
	quiet := d.start("/pty", `{"type":"start","cmd":"sh","args":["-c","read x; echo got-$x"]}`)
	busy := d.start("/pty", `{"type":"start","cmd":"sh","args":["-c","while sleep 0.02; do echo tick; done"],"kill":true}`)
	reading, stop := context.WithCancel(t.Context())
	defer stop()
	answered := make(chan error, 1)
	go func() { // who reads answers probes
		_, data, err := quiet.conn.Read(quiet.ctx)
		for err == nil && !strings.Contains(string(data), "got-late") {
			var more []byte
			_, more, err = quiet.conn.Read(quiet.ctx)
			data = append(data, more...)
		}
		answered <- err
	}()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && reading.Err() == nil; {
		r, err := busy.next()
		require.NoError(t, err)
		require.Nil(t, r)
	}
	quiet.input("late\n")
	require.NoError(t, <-answered)
	quiet.exits(0)
	require.NoError(t, busy.conn.CloseNow())
}

// TestT04_SessionsEndWithTheControlPlane and programs do not.
func TestT04_SessionsEndWithTheControlPlane(t *testing.T) {
	d := open(t, Clocks{})
	v := d.start("/pty", `{"type":"start","cmd":"sleep","args":["300"]}`)
	d.end()
	v.fails(websocket.StatusGoingAway)
	watch, err := d.guest.Attach(v.ctx, v.pid, true)
	require.NoError(t, err)
	require.NoError(t, watch.Close())
}
