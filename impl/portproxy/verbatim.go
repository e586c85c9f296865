package portproxy

import (
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"

	"wrenn/impl/transport"
)

// setTarget makes pr's outgoing request ask base for target, the path and query exactly as they came over
// the wire: Opaque is what net/http puts into the request line untouched. It cannot hold a target that
// starts with two slashes (it would be taken for a host name), so there the parsed form is used, which
// differs only in that bytes that no URL may hold raw ('|', '"', non-ASCII) leave percent-encoded.
func setTarget(pr *httputil.ProxyRequest, base url.URL, target string) {
	out := &url.URL{Scheme: base.Scheme, Host: base.Host, Opaque: target}
	if strings.HasPrefix(target, "//") {
		if u, err := url.ParseRequestURI(target); err == nil {
			out.Opaque = ""
			out.Path, out.RawPath, out.RawQuery, out.ForceQuery = u.Path, u.RawPath, u.RawQuery, u.ForceQuery
		}
	}
	pr.Out.URL = out
	pr.Out.Host = pr.In.Host
}

// rawTarget returns r's path and query as they came over the wire.
func rawTarget(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI() // absolute form, as sent to a proxy
}

// keyPrefix marks our API keys, so that one sent here by mistake is told from a header of the user's own
// program that happens to have the same name.
const keyPrefix = "e2b_"

// dropPrivate removes what is between the client and Wrenn from a request to a guest: routing headers and
// credentials. The guest daemon's own token and a user's Authorization stay.
func dropPrivate(h http.Header) {
	for _, name := range []string{headerID, headerPort, headerTraffic, transport.AgentTokenHeader} {
		h.Del(name)
	}
	if strings.HasPrefix(h.Get("X-Api-Key"), keyPrefix) {
		h.Del("X-Api-Key")
	}
	if _, value, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.HasPrefix(value, keyPrefix) {
		h.Del("Authorization")
	}
}

// verbatim keeps net/http's server from adding a Content-Type or Date that the guest did not send, and from
// holding back what the guest has sent: an event stream's next byte may be hours away. ReverseProxy would do
// the latter with a timer and a goroutine for each answer, and send the header of every one by itself.
type verbatim struct {
	http.ResponseWriter
	// soon: the first bytes of the body are at hand, so that the header may go with them.
	soon bool
	// body is the request's, nil where there is none.
	body *sentBody
	flow *transport.Flow
	// gather is for the pieces of an answer in chunks.
	gather *transport.Gather
}

// smallPiece is what net/http's server writes with its frame at once, in bytes: it has a buffer of 4096.
const smallPiece = 4000

type verbatimKey struct{}

// sentBody is a request's body that knows whether it has been read to its end.
type sentBody struct {
	io.ReadCloser
	ended atomic.Bool
}

// Read reads from the body.
func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return n, err
}

// watchBody makes r's body one that knows whether it has been read; nil where r has none.
func watchBody(r *http.Request) *sentBody {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil
	}
	b := &sentBody{ReadCloser: r.Body}
	r.Body = b
	return b
}

// expect looks at the answer that is about to be written.
func (v *verbatim) expect(res *http.Response) {
	b, ok := res.Body.(interface{ Buffered() int })
	v.soon = ok && (b.Buffered() > 0 || res.ContentLength == 0 || res.Request != nil && res.Request.Method == http.MethodHead)
}

// WriteHeader sends the header with status code.
func (v *verbatim) WriteHeader(code int) {
	for _, name := range []string{"Content-Type", "Date"} {
		if _, ok := v.Header()[name]; !ok && code >= http.StatusOK {
			v.Header()[name] = nil
		}
	}
	if code >= http.StatusOK && v.body != nil && !v.body.ended.Load() {
		// The server would read what is left after the answer and take its end for that of a request whose
		// handler still reads, which it does not survive; and whoever is refused an upload had better not
		// send the rest.
		v.Header().Set("Connection", "close")
	}
	v.ResponseWriter.WriteHeader(code)
	if code >= http.StatusOK && !v.soon {
		v.flush()
	}
}

// Write sends p at once.
func (v *verbatim) Write(p []byte) (int, error) {
	v.flow.Sent(len(p))
	if len(p) > smallPiece && v.Header()["Content-Length"] == nil {
		v.gather.Begin()
		defer v.gather.End()
	}
	n, err := v.ResponseWriter.Write(p)
	v.flush()
	return n, err
}

// flush sends what has been written. That it cannot be is for the next write to find out.
func (v *verbatim) flush() { _ = http.NewResponseController(v.ResponseWriter).Flush() }

// Unwrap gives http.ResponseController the writer beneath, so that flushing and hijacking work.
func (v *verbatim) Unwrap() http.ResponseWriter { return v.ResponseWriter }
