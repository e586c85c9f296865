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
		return &socket{ctx: ctx, conn: conn, output: func(kind websocket.MessageType, data []byte) ([]byte, error) {
			if kind != websocket.MessageBinary {
				return nil, nil // it is about the terminal
			}
			return data, nil
		}, input: func(p []byte) (websocket.MessageType, []byte, error) { return websocket.MessageBinary, p, nil }}, nil
	}
	return c, nil
}
