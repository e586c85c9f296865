package transport

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"

	"wrenn/impl/internal/shortcut"
)

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

func closeBody(r *http.Request) error {
	if r.Body == nil {
		return nil
	}
	return r.Body.Close()
}

// notCopied are headers that writeHead writes itself.
var notCopied = map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Trailer": true}

func writeHead(w *bufio.Writer, r *http.Request, target string, keep bool) {
	line := func(parts ...string) {
		for _, p := range parts {
			_, _ = w.WriteString(p)
		}
		_, _ = w.WriteString("\r\n")
	}
	line(r.Method, " ", target, " HTTP/1.1")
	line("Host: ", headerValue.Replace(cmp.Or(r.Host, r.URL.Host)))
	_ = r.Header.WriteSubset(w, notCopied)
	switch {
	case hasBody(r) && r.ContentLength > 0:
		line("Content-Length: ", strconv.FormatInt(r.ContentLength, 10))
	case hasBody(r):
		line("Transfer-Encoding: chunked")
		for name := range r.Trailer {
			line("Trailer: ", headerValue.Replace(name))
		}
	case r.Header.Get("Content-Length") == "0": // the client said so
		line("Content-Length: 0")
	}
	if !keep && r.Header.Get("Upgrade") == "" {
		line("Connection: close")
	}
	line()
}

var headerValue = strings.NewReplacer("\n", " ", "\r", " ")

// pieces are buffers for bodies: 32 KiB is what io.Copy takes at once.
var pieces = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// shortBody is the most, in bytes, that goes with the header: a key is 30 to 100 bytes with all that is around it,
// and header and body together should fit a bufio.Writer's 4096, which writes them at once.
const shortBody = 2048

// isShort says whether r's body may be waited for.
func isShort(r *http.Request) bool {
	return hasBody(r) && r.ContentLength > 0 && r.ContentLength <= shortBody && r.Header.Get("Expect") == ""
}

// sendWhole sends what w holds and r's body, which is short. As elsewhere a failed write says nothing of the answer.
func sendWhole(w *bufio.Writer, r *http.Request) error {
	n, err := io.Copy(w, r.Body) // to its end: who has lent it wants to know that it has been read
	if err == nil && n != r.ContentLength {
		err = fmt.Errorf("the request's body has %d bytes and not the %d of its length", n, r.ContentLength)
	}
	if err = errors.Join(err, closeBody(r)); err == nil {
		_ = w.Flush()
	}
	return err
}

// writeBody sends the body piece by piece, as it comes. It returns whether it could not be written, which is
// for the answer to explain, and why it could not be read.
func writeBody(w *bufio.Writer, conn net.Conn, r *http.Request) (unsent bool, broken error) {
	left := r.ContentLength
	chunked := left <= 0 // 0 with a body means that it is not known, by net/http's contract
	to := &bodyWriter{Writer: w, flush: w.Flush, conn: conn}
	if chunked {
		to.Writer, left = httputil.NewChunkedWriter(w), math.MaxInt64
	}
	if own, ok := r.Body.(io.WriterTo); ok && chunked {
		_, broken = own.WriteTo(to)
	} else {
		broken = to.copy(r.Body, left)
	}
	switch {
	case to.failed:
		return true, nil
	case errors.Is(broken, io.EOF) && !chunked:
		return true, fmt.Errorf("the request's body ended %d bytes before its length", left-to.copied)
	case broken != nil && !errors.Is(broken, io.EOF):
		return true, broken
	case !chunked:
		return false, nil
	}
	_, _ = w.WriteString("0\r\n")
	_ = r.Trailer.Write(w)
	_, _ = w.WriteString("\r\n")
	return w.Flush() != nil, nil
}

// bodyWriter is what a body is written to, by itself if it is an io.WriterTo of unknown length. Each write is sent at once.
type bodyWriter struct {
	io.Writer
	flush  func() error
	conn   net.Conn
	room   func() bool
	copied int64 // bytes, by copy
	failed bool
}

// Write sends p.
func (b *bodyWriter) Write(p []byte) (int, error) {
	n, err := b.Writer.Write(p)
	if err == nil {
		err = b.flush()
	}
	b.failed = b.failed || err != nil
	return n, err
}

// HasRoom says whether something short can be written without waiting.
func (b *bodyWriter) HasRoom() bool {
	if b.room == nil {
		if b.room = shortcut.RoomOf(b.conn); b.room == nil {
			b.room = func() bool { return false }
		}
	}
	return b.room()
}

// copy writes most bytes of body, or all up to io.EOF.
func (b *bodyWriter) copy(body io.Reader, most int64) error {
	buf := pieces.Get().(*[32 << 10]byte)
	defer pieces.Put(buf)
	for most > 0 {
		n, err := body.Read(buf[:min(int64(len(buf)), most)])
		most -= int64(n)
		b.copied += int64(n)
		if n > 0 {
			if _, failed := b.Write(buf[:n]); failed != nil {
				return failed
			}
		}
		if err != nil && (most > 0 || !errors.Is(err, io.EOF)) {
			return err
		}
	}
	return nil
}
