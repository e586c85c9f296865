package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/coder/websocket"

	"wrenn/impl/envdclient"
)

// request is a text message from the client.
type request struct {
	// Type is start or attach for the first message; afterwards resize, signal, eof or ping.
	Type string `json:"type"`

	// Of start: what to run. Without cmd a terminal gets a login shell.
	Cmd  string            `json:"cmd"`
	Args []string          `json:"args"`
	Env  map[string]string `json:"env"`
	Cwd  string            `json:"cwd"`
	User string            `json:"user"`
	// Stdin keeps standard input open for a program with pipes.
	Stdin bool `json:"stdin"`
	// Kill ends the program when this connection ends before it.
	Kill bool `json:"kill"`

	// Of start and resize: a terminal's size, 1 to 65535 each.
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`

	// Of attach.
	PID uint32 `json:"pid"`
	// ReadOnly makes a viewer that cannot send anything to the program.
	ReadOnly bool `json:"readOnly"`

	// Of signal: SIGTERM or SIGKILL.
	Signal string `json:"signal"`
}

// reply is a text message to the client: started, exit, error or pong.
type reply struct {
	Type    string `json:"type"`
	PID     uint32 `json:"pid,omitempty"`
	Code    *int   `json:"code,omitempty"` // of exit; -1 when a signal ended the program
	Status  string `json:"status,omitempty"`
	Message string `json:"message,omitempty"`
}

func control(kind string, fill func(*reply)) message {
	r := reply{Type: kind}
	if fill != nil {
		fill(&r)
	}
	raw, _ := json.Marshal(r) // of strings and numbers
	return message{websocket.MessageText, raw}
}

// The channels of a program with pipes: the first byte of each binary message.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
)

// messageOf makes an event a message.
func messageOf(ev envdclient.Event, terminal bool) message {
	switch {
	case ev.Kind == envdclient.Ended:
		return control("exit", func(r *reply) { r.Code, r.Status = &ev.Exit.Code, ev.Exit.Status })
	case terminal:
		return message{websocket.MessageBinary, ev.Data}
	}
	channel := byte(channelStdout)
	if ev.Kind == envdclient.Stderr {
		channel = channelStderr
	}
	return message{websocket.MessageBinary, append([]byte{channel}, ev.Data...)}
}

// forbidden is the ending of a client that does what the protocol forbids.
func forbidden(format string, args ...any) error {
	return ending{code: websocket.StatusPolicyViolation, reason: short(fmt.Sprintf(format, args...))}
}

// parse reads a text message. Unknown fields are refused, as everywhere in the API.
func parse(data []byte) (request, error) {
	var r request
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return r, forbidden("a text message must be JSON of this protocol: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := dec.Token(); err != io.EOF {
		return r, forbidden("a text message must be one JSON object")
	}
	return r, nil
}

// short cuts a reason to what a close frame can hold, 123 bytes, at a whole character.
func short(reason string) string {
	const most = 123
	if len(reason) <= most {
		return reason
	}
	reason = reason[:most-3]
	for !utf8.ValidString(reason) && len(reason) > 0 {
		reason = reason[:len(reason)-1]
	}
	return reason + "..."
}
