package session

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/envd"
	"wrenn/impl/envdclient"
	"wrenn/impl/transport"
)

// wait is far beyond what anything here takes on an idle machine.
const wait = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door is a server of sessions with a real daemon behind it.
type door struct {
	t     *testing.T
	url   string
	guest *envdclient.Client
	end   context.CancelFunc                                                // ends the sessions, as the control plane's end does
	dial  func(ctx context.Context, network, addr string) (net.Conn, error) // by which clients connect; nil is as always
	asked atomic.Int64                                                      // how often a session has asked for room on its client's connection, to send something past the queue
}

func open(t *testing.T, clocks Clocks) *door {
	t.Helper()
	return openWith(t, clocks, clocks.Patience)
}

// openWith gives the daemon another patience than the sessions.
func openWith(t *testing.T, clocks Clocks, patience time.Duration) *door {
	t.Helper()
	addr := make(chan net.Addr, 1)
	over := make(chan error, 1)
	life, end := context.WithCancel(context.WithoutCancel(t.Context()))
	guestLife, endGuest := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		over <- envd.Run(guestLife, envd.Config{
			Addr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), Listening: func(a net.Addr) { addr <- a }, ReadPatience: patience,
		})
	}()
	tr := transport.NewStreamProxyTransport()
	guest, err := envdclient.New(envdclient.Config{BaseURL: "http://" + (<-addr).String(), HTTPClient: &http.Client{Transport: tr}})
	require.NoError(t, err)
	d := &door{t: t, guest: guest, end: end}
	var serving sync.WaitGroup
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = transport.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Done()
		room := transport.RoomOf(r)
		assert.NotNil(t, room)
		Serve(life, w, r, Config{
			Guest: guest, Terminal: r.URL.Path == "/pty", Clocks: clocks, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Room: func() bool { d.asked.Add(1); return room() },
		})
	}))
	srv.Start()
	t.Cleanup(func() {
		end()
		srv.Close()
		serving.Wait()
		endGuest()
		assert.NoError(t, <-over)
		tr.CloseIdleConnections()
	})
	d.url = "ws" + strings.TrimPrefix(srv.URL, "http")
	return d
}

// viewer is a client's side of one conversation.
type viewer struct {
	t    *testing.T
	ctx  context.Context
	conn *websocket.Conn
	// seen is what binary messages have brought: of a terminal, or by channel.
	seen   strings.Builder
	byName [3]strings.Builder
	pid    uint32
	exec   bool
}

// connect opens a conversation with a first message.
func (d *door) connect(path, first string) *viewer {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.t.Context()), wait)
	d.t.Cleanup(cancel)
	tr := transport.NewStreamTransport()
	if d.dial != nil {
		tr.DialContext = d.dial
	}
	d.t.Cleanup(tr.CloseIdleConnections)
	conn, _, err := websocket.Dial(ctx, d.url+path, &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}, Subprotocols: []string{Protocol}})
	require.NoError(d.t, err)
	d.t.Cleanup(func() { _ = conn.CloseNow() })
	conn.SetReadLimit(4 << 20)
	v := &viewer{t: d.t, ctx: ctx, conn: conn, exec: path == "/exec"}
	if first != "" {
		v.say(first)
	}
	return v
}

// start opens a conversation that begins.
func (d *door) start(path, first string) *viewer {
	d.t.Helper()
	v := d.connect(path, first)
	r := v.control()
	require.Equal(d.t, "started", r.Type, "%+v", r)
	require.NotZero(d.t, r.PID)
	v.pid = r.PID
	return v
}

func (v *viewer) say(text string) {
	v.t.Helper()
	require.NoError(v.t, v.conn.Write(v.ctx, websocket.MessageText, []byte(text)))
}

// input sends bytes.
func (v *viewer) input(data string) {
	v.t.Helper()
	if v.exec {
		data = "\x00" + data
	}
	require.NoError(v.t, v.conn.Write(v.ctx, websocket.MessageBinary, []byte(data)))
}

// next reads one message: output is kept, a text message is returned.
func (v *viewer) next() (*reply, error) {
	kind, data, err := v.conn.Read(v.ctx)
	if err != nil {
		return nil, err
	}
	if kind == websocket.MessageBinary {
		if v.exec {
			require.NotEmpty(v.t, data)
			require.Contains(v.t, []byte{channelStdout, channelStderr}, data[0])
			v.byName[data[0]].Write(data[1:])
			data = data[1:]
		}
		v.seen.Write(data)
		return nil, nil
	}
	r := &reply{}
	require.NoError(v.t, json.Unmarshal(data, r))
	return r, nil
}

// control reads up to the next text message.
func (v *viewer) control() reply {
	v.t.Helper()
	for {
		r, err := v.next()
		require.NoError(v.t, err, "seen so far: %.300q", v.seen.String())
		if r != nil {
			return *r
		}
	}
}

// until reads until the output holds what.
func (v *viewer) until(what string) {
	v.t.Helper()
	from := 0 // what was looked through already
	for !strings.Contains(v.seen.String()[from:], what) {
		from = max(0, v.seen.Len()-len(what))
		r, err := v.next()
		require.NoError(v.t, err, "%q not in %.300q", what, v.seen.String())
		require.Nil(v.t, r, "%q not in %.300q: %+v", what, v.seen.String(), r)
	}
}

// exits reads to the end of a program that ends with code; nothing comes after it.
func (v *viewer) exits(code int) {
	v.t.Helper()
	r := v.control()
	require.Equal(v.t, "exit", r.Type, "%+v", r)
	require.NotNil(v.t, r.Code)
	assert.Equal(v.t, code, *r.Code, "%+v", r)
	v.closed(websocket.StatusNormalClosure)
}

// closed expects the close frame next.
func (v *viewer) closed(code websocket.StatusCode) string {
	v.t.Helper()
	_, _, err := v.conn.Read(v.ctx)
	require.Equal(v.t, code, websocket.CloseStatus(err), "%v", err)
	var e websocket.CloseError
	require.True(v.t, errors.As(err, &e))
	return e.Reason
}

// fails reads to an error and its close frame.
func (v *viewer) fails(code websocket.StatusCode) string {
	v.t.Helper()
	r := v.control()
	require.Equal(v.t, "error", r.Type, "%+v", r)
	v.closed(code)
	return r.Message
}
