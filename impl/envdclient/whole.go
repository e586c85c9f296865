package envdclient

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
)

// prefixBytes is what Connect puts before each message of a stream: a byte of flags and the message's length.
const prefixBytes = 5

// wholeMessages is the body of a streaming call, of which each message is read with its prefix. Connect writes the two one after
// the other into a pipe, so that each would be a chunk and a packet of its own: for every key that is typed, whoever
// carries it and the daemon would be woken twice.
type wholeMessages struct {
	io.ReadCloser
	head    [prefixBytes]byte
	pending []byte // of head, not read yet
	left    uint32 // bytes of the message that are still to come
	err     error
}

// gathered gives r a body of whole messages, if it is a stream's.
func gathered(r *http.Request) {
	if r.Body != nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/connect+") {
		r.Body = &wholeMessages{ReadCloser: r.Body}
	}
}

// Read reads one message at most.
func (w *wholeMessages) Read(p []byte) (int, error) {
	if len(w.pending) == 0 && w.left == 0 && w.err == nil {
		n, err := io.ReadFull(w.ReadCloser, w.head[:])
		if w.pending, w.err = w.head[:n], err; errors.Is(err, io.ErrUnexpectedEOF) {
			w.err = io.EOF
		} else if err == nil {
			w.left = binary.BigEndian.Uint32(w.head[1:])
		}
	}
	n := copy(p, w.pending)
	w.pending = w.pending[n:]
	switch {
	case w.left > 0 && n < len(p):
		m, err := w.ReadCloser.Read(p[n:min(len(p), n+int(w.left))])
		w.left -= uint32(m) // it is at most left
		return n + m, err
	case n == 0 && len(p) > 0:
		return 0, w.err
	}
	return n, nil
}
