package controlplane

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/envd"
	"wrenn/impl/envdclient"
	"wrenn/impl/session"
	"wrenn/impl/transport"
	"wrenn/impl/transport/hopserver"
)

// tick is what every clock of the servers and transports on the way is shortened to.
const tick = 150 * time.Millisecond

// shorten shortens the clocks of one server or transport, all but that of dials, which is over when a stream
// begins.
func shorten(api *http.Server, proxy *hopserver.Server, streams *transport.Direct) {
	api.ReadHeaderTimeout, api.IdleTimeout, proxy.HeaderTimeout, proxy.IdleTimeout = tick, tick, tick, tick
	streams.KeepIdle(tick)
}

// terminal is a terminal through any door.
type terminal interface {
	io.Writer
	io.Reader
}

// socketTerminal is one by WebSocket.
type socketTerminal struct {
	*websocket.Conn
	ctx  context.Context
	rest []byte
}

func (s *socketTerminal) Write(p []byte) (int, error) {
	return len(p), s.Conn.Write(s.ctx, websocket.MessageBinary, p)
}

func (s *socketTerminal) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		var err error
		if _, s.rest, err = s.Conn.Read(s.ctx); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// TestT04_StreamsOutliveEveryTimeout runs a quiet and a busy terminal over every door for longer than the sum of
// all clocks on their way, which are shortened (those of the guest's daemon have a test of their own).
func TestT04_StreamsOutliveEveryTimeout(t *testing.T) {
	clocks := session.Clocks{Open: wait, Ping: tick, Patience: wait, Farewell: tick}
	// API, proxy, agent: header and idle of each server; streams, bulk: idle, handshake and header; the session's.
	const sum = (3*2 + 2*3 + 2) * tick

	guestAddr := runDaemon(t)
	a := newStandIn(t, http.NotFoundHandler(), func(s *hopserver.Server) { s.HeaderTimeout, s.IdleTimeout = tick, tick })
	a.guest = &url.URL{Scheme: "http", Host: guestAddr}
	p := startPlane(t, []agentclient.Config{a.config("one")}, func(c *Config) {
		c.Sessions, c.ReconcileInterval, c.tune = clocks, tick, shorten
	})
	sb := p.create(map[string]any{"timeout": 3600})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*wait)
	t.Cleanup(cancel)

	scripts := map[string]string{"quiet": "read x; echo got-$x; read y", "busy": "while sleep 0.03; do echo tick; done & read x; echo got-$x; read y"}
	connect := func(base string, header http.Header) func(t *testing.T, script string) terminal {
		tr := transport.NewStreamTransport()
		t.Cleanup(tr.CloseIdleConnections)
		tr.IdleConnTimeout, tr.ExpectContinueTimeout, tr.TLSHandshakeTimeout = tick, tick, tick
		guest, err := envdclient.New(envdclient.Config{BaseURL: base, Headers: header, HTTPClient: &http.Client{Transport: tr}, AccessToken: sb.EnvdAccessToken})
		require.NoError(t, err)
		return func(t *testing.T, script string) terminal {
			s, err := guest.PTY(ctx, envdclient.PTYRequest{Cmd: "sh", Args: []string{"-c", script}})
			require.NoError(t, err)
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
	}
	doors := map[string]func(t *testing.T, script string) terminal{
		"daemon":          connect("http://"+guestAddr, nil),
		"agent":           connect(a.url+"/proxy/"+sb.SandboxID+"/49983", http.Header{transport.AgentTokenHeader: {agentToken}}),
		"proxy by header": connect("http://"+p.proxy, http.Header{"E2b-Sandbox-Id": {sb.SandboxID}, "E2b-Sandbox-Port": {"49983"}}),
		"WebSocket": func(t *testing.T, script string) terminal {
			conn, _, err := p.dial("/sandboxes/"+sb.SandboxID+"/pty", http.Header{"X-Api-Key": {p.key}})
			require.NoError(t, err)
			t.Cleanup(func() { _ = conn.CloseNow() })
			first := `{"type":"start","kill":true,"cmd":"sh","args":["-c","` + script + `"]}`
			require.NoError(t, conn.Write(ctx, websocket.MessageText, []byte(first)))
			return &socketTerminal{Conn: conn, ctx: ctx}
		},
	}
	begun := time.Now()
	for name, open := range doors {
		for kind, script := range scripts {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				s := open(t, script)
				seen := make(chan string, 1)
				go func() { // reads all the time, as a terminal does
					var all strings.Builder
					buf := make([]byte, 4096)
					for !strings.Contains(all.String(), "got-late") {
						n, err := s.Read(buf)
						all.Write(buf[:n])
						if err != nil {
							all.WriteString(err.Error())
							break
						}
					}
					seen <- all.String()
				}()
				time.Sleep(sum)
				_, err := io.WriteString(s, "late\n")
				require.NoError(t, err, "after %v", time.Since(begun))
				select {
				case all := <-seen:
					assert.Contains(t, all, "got-late")
					assert.Equal(t, kind == "busy", strings.Count(all, "tick") > 20, "%.200q", all)
				case <-time.After(wait):
					require.Fail(t, "the terminal does not answer")
				}
			})
		}
	}
}

// runDaemon runs a guest's daemon until the test ends.
func runDaemon(t *testing.T) string {
	t.Helper()
	listening := make(chan net.Addr, 1)
	over := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		over <- envd.Run(ctx, envd.Config{Addr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), Listening: func(a net.Addr) { listening <- a }})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-over)
	})
	return (<-listening).String()
}
