package ground

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"github.com/coder/websocket"

	"wrenn/impl/transport"
)

// openIsolatedWS is openIsolated with terminals by the control plane's WebSocket, which pages and the command line
// use: a key is a message there and no call.
func openIsolatedWS(ctx context.Context, g *Ground, l Link) (*Client, error) {
	c, err := openIsolated(ctx, g, l)
	if err != nil {
		return nil, err
	}
	rt := transport.NewStreamTransport()
	rt.DialContext = l.DialContext
	c.close = append(c.close, rt.CloseIdleConnections)
	url := fmt.Sprintf("ws://%s/sandboxes/%s/pty", netip.AddrPortFrom(l.Head, apiPort), g.Box.SandboxID)
	options := &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: rt}, HTTPHeader: http.Header{"X-Api-Key": {g.APIKey}},
		Subprotocols: []string{"wrenn.v1"}, CompressionMode: websocket.CompressionDisabled,
	}
	start, err := json.Marshal(map[string]any{"type": "start", "kill": true, "cmd": "sh", "args": []string{"-c", script}})
	if err != nil {
		return nil, err
	}
	c.Terminal = func(ctx context.Context) (io.ReadWriteCloser, error) {
		conn, _, err := websocket.Dial(ctx, url, options) //nolint:bodyclose // the library has closed it
		if err != nil {
			return nil, err
		}
		if err := conn.Write(ctx, websocket.MessageText, start); err != nil {
			return nil, err
		}
		return &session{ctx: ctx, conn: conn}, nil
	}
	return c, nil
}

// session is a terminal by the control plane's WebSocket: binary messages are its bytes, text is about it.
type session struct {
	ctx  context.Context //nolint:containedctx // io.Reader cannot carry it
	conn *websocket.Conn
	rest []byte
}

func (s *session) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		kind, data, err := s.conn.Read(s.ctx)
		if err != nil {
			return 0, err
		}
		if kind == websocket.MessageBinary {
			s.rest = data
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *session) Write(p []byte) (int, error) {
	return len(p), s.conn.Write(s.ctx, websocket.MessageBinary, p)
}

func (s *session) Close() error { return s.conn.CloseNow() }
