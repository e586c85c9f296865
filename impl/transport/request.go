package transport

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
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
func writeBody(w *bufio.Writer, r *http.Request) (unsent bool, broken error) {
	buf := pieces.Get().(*[32 << 10]byte)
	defer pieces.Put(buf)
	var out io.Writer = w
	left := r.ContentLength
	chunked := left <= 0 // 0 with a body means that it is not known, by net/http's contract
	if chunked {
		out, left = httputil.NewChunkedWriter(w), math.MaxInt64
	}
	for left > 0 {
		n, err := r.Body.Read(buf[:min(int64(len(buf)), left)])
		left -= int64(n)
		if n > 0 {
			_, werr := out.Write(buf[:n])
			if errors.Join(werr, w.Flush()) != nil {
				return true, nil
			}
		}
		switch {
		case errors.Is(err, io.EOF) && (chunked || left == 0):
			left = 0
		case errors.Is(err, io.EOF):
			return true, fmt.Errorf("the request's body ended %d bytes before its length", left)
		case err != nil:
			return true, err
		}
	}
	if !chunked {
		return false, nil
	}
	_, _ = w.WriteString("0\r\n")
	_ = r.Trailer.Write(w)
	_, _ = w.WriteString("\r\n")
	return w.Flush() != nil, nil
}
