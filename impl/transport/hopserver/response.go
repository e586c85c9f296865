package hopserver

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// response is the answer to one request.
type response struct {
	conn   *conn
	r      *http.Request
	cancel context.CancelFunc // ends the request's context
	body   *body              // of the request; nil where there is none
	header http.Header

	status   int         // 0 until the handler has chosen it
	waits    http.Header // what the header was then, while it is not known whether the body has a length
	held     []byte      // the body, as long
	length   int64       // of the body, as the header says; -1 where it does not
	sent     int64       // of the body, in bytes
	empty    bool        // this answer has no body, whatever its header says
	chunked  bool
	last     bool // the connection ends with this answer
	hijacked bool
}

// smallBody is what a body without a length may have, in bytes, and still be sent with one.
const smallBody = 2048

// newResponse returns the answer to read, which the handler is given with ctx.
func newResponse(ctx context.Context, cancel context.CancelFunc, c *conn, read *http.Request) *response {
	r := read.WithContext(ctx)
	w := &response{conn: c, r: r, cancel: cancel, header: make(http.Header, 8), length: -1, last: r.Close}
	if r.Body != http.NoBody {
		w.body = &body{src: r.Body, read: read, r: r, expects: r.ProtoAtLeast(1, 1) && r.ContentLength != 0 && expectsContinue(r), w: c.w}
		r.Body = w.body
	}
	return w
}

// Header returns the header that the next WriteHeader sends.
func (w *response) Header() http.Header { return w.header }

// EnableFullDuplex is for http.ResponseController. It is so always.
func (w *response) EnableFullDuplex() error { return nil }

// WriteHeader sends an interim answer, or begins the final one.
func (w *response) WriteHeader(code int) {
	switch {
	case w.hijacked || w.status != 0:
		w.conn.server.ErrorLog.Printf("superfluous answer %d after %d", code, w.status)
		return
	case code < 100 || code > 999:
		panic(fmt.Sprintf("invalid status %d", code))
	case code < 200 && code != http.StatusSwitchingProtocols:
		w.interim(code)
		return
	}
	if !w.body.answered() {
		w.last = true // whether the body comes is not known
	}
	w.status = code
	w.empty = w.r.Method == http.MethodHead || !mayHaveBody(code)
	if text := w.header.Get("Content-Length"); text != "" {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
			w.length = n
		} else {
			w.header.Del("Content-Length")
		}
	}
	if w.empty || w.length >= 0 {
		w.writeHead(w.header)
	} else {
		w.waits = w.header.Clone()
	}
}

// mayHaveBody says whether an answer of that status can have one (RFC 9112, 6.3).
func mayHaveBody(code int) bool {
	return code >= 200 && code != http.StatusNoContent && code != http.StatusNotModified
}

func (w *response) interim(code int) {
	switch {
	case code == http.StatusContinue:
		w.body.proceed()
	case w.r.ProtoAtLeast(1, 1): // before it there were none
		w.body.undisturbed(func() {
			w.statusLine(code)
			_ = w.header.Write(w.conn.w)
			_, _ = w.conn.w.WriteString("\r\n")
			_ = w.conn.w.Flush()
		})
	}
}

func (w *response) statusLine(code int) {
	version, text := "HTTP/1.1 ", http.StatusText(code)
	if !w.r.ProtoAtLeast(1, 1) {
		version = "HTTP/1.0 "
	}
	if text == "" {
		text = "status code " + strconv.Itoa(code)
	}
	for _, s := range []string{version, strconv.Itoa(code), " ", text, "\r\n"} {
		_, _ = w.conn.w.WriteString(s)
	}
}

// ours are headers that say how the answer is framed.
var ours = map[string]bool{"Connection": true, "Transfer-Encoding": true}

// writeHead writes the status and h, and decides how the body is framed.
func (w *response) writeHead(h http.Header) {
	w.waits = nil
	if httpguts.HeaderValuesContainsToken(h["Connection"], "close") {
		w.last = true
	}
	if !w.empty && w.length < 0 {
		w.chunked = w.r.ProtoAtLeast(1, 1)
		w.last = w.last || !w.chunked
	}
	w.statusLine(w.status)
	_ = h.WriteSubset(w.conn.w, ours) // without those of http.TrailerPrefix, which is no part of a name
	line := w.conn.w.WriteString
	if _, ok := h["Date"]; !ok {
		_, _ = line("Date: " + time.Now().UTC().Format(http.TimeFormat) + "\r\n")
	}
	if w.chunked {
		_, _ = line("Transfer-Encoding: chunked\r\n")
	}
	switch modern := w.r.ProtoAtLeast(1, 1); {
	case w.last && modern:
		_, _ = line("Connection: close\r\n")
	case !w.last && !modern:
		_, _ = line("Connection: keep-alive\r\n")
	}
	_, _ = line("\r\n")
}

// Write sends a piece of the body, through a buffer.
func (w *response) Write(p []byte) (int, error) {
	if w.hijacked {
		return 0, http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case len(p) == 0:
		return 0, nil
	case w.empty && w.r.Method == http.MethodHead:
		return len(p), nil
	case w.empty:
		return 0, http.ErrBodyNotAllowed
	case w.length >= 0 && w.sent+int64(len(p)) > w.length:
		return 0, http.ErrContentLength
	}
	w.sent += int64(len(p))
	if w.waits != nil {
		if len(w.held)+len(p) <= smallBody {
			w.held = append(w.held, p...)
			return len(p), nil
		}
		if err := w.unhold(); err != nil {
			return 0, err
		}
	}
	return len(p), w.send(p)
}

// unhold sends the header and what was held of a body, whose length is not known.
func (w *response) unhold() error {
	w.writeHead(w.waits)
	held := w.held
	w.held = nil
	return w.send(held)
}

// send writes a piece of the body in its frame.
func (w *response) send(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if w.chunked {
		var frame [18]byte
		_, _ = w.conn.w.Write(append(strconv.AppendInt(frame[:0], int64(len(p)), 16), '\r', '\n'))
	}
	_, err := w.conn.w.Write(p)
	if w.chunked {
		_, err = w.conn.w.WriteString("\r\n")
	}
	return err
}

// FlushError sends what has been written, and the header if it has not been sent.
func (w *response) FlushError() error {
	if w.hijacked {
		return http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.waits != nil {
		if err := w.unhold(); err != nil {
			return err
		}
	}
	return w.conn.w.Flush()
}

// Flush is FlushError for http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// Hijack gives the connection to the handler, with what has been read of it.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.hijacked {
		return nil, nil, http.ErrHijacked
	}
	if w.status != 0 {
		return nil, nil, fmt.Errorf("take over a connection: it has been answered with %d", w.status)
	}
	if !w.conn.release() {
		return nil, nil, net.ErrClosed
	}
	w.hijacked = true
	return w.conn.rwc, bufio.NewReadWriter(w.conn.r, w.conn.w), nil
}

// finish ends the answer and says whether the connection may carry another.
func (w *response) finish() bool {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.waits != nil {
		w.length = int64(len(w.held))
		w.waits["Content-Length"] = []string{strconv.FormatInt(w.length, 10)}
		w.writeHead(w.waits)
		_ = w.send(w.held)
	}
	if w.chunked {
		w.writeTrailer()
	}
	failed := w.conn.w.Flush() != nil
	w.conn.unwatch()
	switch {
	case failed, !w.empty && w.length >= 0 && w.sent < w.length:
		return false // which the client sees
	case w.last && !w.body.hasEnded():
		w.conn.linger()
		return false
	case w.last:
		return false
	}
	if !w.body.drain() {
		w.conn.linger()
		return false
	}
	return true
}

// writeTrailer ends a chunked body.
func (w *response) writeTrailer() {
	trailer := http.Header{}
	for _, list := range w.header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if values, ok := w.header[name]; ok && httpguts.ValidTrailerHeader(name) {
				trailer[name] = values
			}
		}
	}
	for name, values := range w.header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			trailer[name] = values
		}
	}
	_, _ = w.conn.w.WriteString("0\r\n")
	_ = trailer.Write(w.conn.w)
	_, _ = w.conn.w.WriteString("\r\n")
}
