package ground

import (
	"context"

	"github.com/coder/websocket"
)

// socket is a terminal by a WebSocket, whatever its messages are.
type socket struct {
	ctx  context.Context //nolint:containedctx // io.Reader cannot carry it
	conn *websocket.Conn
	// output takes a terminal's bytes from a message, none where it is about something else; input makes a message.
	output func(kind websocket.MessageType, data []byte) ([]byte, error)
	input  func(p []byte) (websocket.MessageType, []byte, error)

	rest []byte
}

// Read returns what the terminal prints.
func (s *socket) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		kind, data, err := s.conn.Read(s.ctx)
		if err == nil {
			s.rest, err = s.output(kind, data)
		}
		if err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write types.
func (s *socket) Write(p []byte) (int, error) {
	kind, data, err := s.input(p)
	if err == nil {
		err = s.conn.Write(s.ctx, kind, data)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends the connection.
func (s *socket) Close() error { return s.conn.CloseNow() }
