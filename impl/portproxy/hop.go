package portproxy

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"

	"wrenn/impl/transport"
)

// Exchanger makes exchanges: a transport.Direct.
type Exchanger interface {
	RoundTripBy(r *http.Request, way transport.Way, trace *httptrace.ClientTrace) (*http.Response, error)
}

// passage is one request on its way through a hop, and its answer back.
type passage struct {
	w http.ResponseWriter
	// r is the request, which has become the one that goes on.
	r *http.Request
	// via makes the exchange with what answers, by way.
	via Exchanger
	way transport.Way
	// refine changes an answer's header.
	refine func(http.Header)
	// fail answers the client where the next hop did not.
	fail func(error)
	// flow is told what is sent to the client; may be nil.
	flow *transport.Flow
	// done is called when the exchange is over, which for an upgraded connection is later than the handler's return.
	done func()

	upgrade upgrade
	trace   httptrace.ClientTrace
	mu      sync.Mutex
	final   bool // the next hop has answered, or will not
}

// newPassage makes of r the request that goes on to target at base, a path and query as they came over the wire. What concerns
// r's own connection, tells of its client or is Wrenn's own stays behind. That r changes is seen by nobody: it came from a
// server, for this handler alone, and a copy of it with all its header would cost as much as to read it.
func newPassage(w http.ResponseWriter, r *http.Request, base *url.URL, target string) *passage {
	p := &passage{w: w, r: r, done: func() {}}
	p.trace.Got1xxResponse = p.interim
	if p.upgrade.asked = protocol(r.Header); p.upgrade.asked != "" {
		p.trace.GotConn = func(info httptrace.GotConnInfo) { p.upgrade.conn = info.Conn }
	}
	trailers := httpguts.HeaderValuesContainsToken(r.Header["Te"], "trailers")
	dropPerHop(r.Header)
	for _, name := range forwarded {
		delete(r.Header, name)
	}
	dropPrivate(r.Header)
	if trailers {
		r.Header["Te"] = []string{"trailers"}
	}
	if p.upgrade.asked != "" {
		r.Header["Connection"], r.Header["Upgrade"] = []string{"Upgrade"}, []string{p.upgrade.asked}
	}
	r.URL, r.RequestURI, r.Close = targetURL(base, target), "", false
	if r.ContentLength == 0 {
		r.Body = nil
	}
	return p
}

// pass makes p's exchange such that the answer comes back as the next hop sent it, and may begin before the request's
// body has been read.
func (ts *tunnels) pass(p *passage) {
	over := true
	defer func() {
		if over {
			p.done()
		}
	}()
	var body *sentBody
	if p.r.Body != nil {
		_ = http.NewResponseController(p.w).EnableFullDuplex() // an error means that it cannot be otherwise
		body = &sentBody{body: p.r.Body}
		p.r.Body = body
		defer body.forget()
	}
	res, err := p.roundTrip()
	if body.unread() {
		// A server would read what is left after the answer, and whoever is refused an upload had better not send the rest.
		p.w.Header().Set("Connection", "close")
	}
	switch {
	case err != nil:
		p.fail(err)
	case res.StatusCode == http.StatusSwitchingProtocols:
		p.upgrade.res = res
		p.refine(res.Header)
		if err := ts.start(p.w, &p.upgrade, p.done); err != nil {
			p.fail(err)
		} else {
			over = false
		}
	default:
		p.answer(res)
	}
}

// roundTrip asks what answers.
func (p *passage) roundTrip() (*http.Response, error) {
	defer p.end()
	return p.via.RoundTripBy(p.r, p.way, &p.trace)
}

// interim passes an interim answer on, until the final one has come: it may be called from another goroutine, and late.
func (p *passage) interim(code int, header textproto.MIMEHeader) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.final {
		h := p.w.Header()
		maps.Copy(h, header)
		p.w.WriteHeader(code)
		clear(h)
	}
	return nil
}

// end ends the passing of interim answers.
func (p *passage) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.final = true
}

// answer sends res to the client.
func (p *passage) answer(res *http.Response) {
	header := p.w.Header()
	dropPerHop(res.Header)
	maps.Copy(header, res.Header)
	p.refine(header)
	for _, name := range []string{"Content-Type", "Date"} {
		if _, ok := header[name]; !ok {
			header[name] = nil // or the server would add one
		}
	}
	announced := len(res.Trailer)
	for name := range res.Trailer {
		header.Add("Trailer", name)
	}
	p.w.WriteHeader(res.StatusCode)
	if err := p.copyBody(res); err != nil {
		_ = res.Body.Close()
		abort() // by which the client sees that it has not got all
	}
	_ = res.Body.Close()
	prefix := ""
	if len(res.Trailer) != announced {
		prefix = http.TrailerPrefix
	}
	for name, values := range res.Trailer {
		header[prefix+name] = values
	}
}

// abort ends the client's connection without an answer: it has gone, or this server ends and there is none to give.
func abort() { panic(http.ErrAbortHandler) }

// smallPiece is what a server writes with its frame at once, in bytes: it has a buffer of 4096.
const smallPiece = 4000

// copyBody sends res's body to the client, each piece as it comes: an event stream's next byte may be hours away. The header
// goes with the first piece if that has come already.
func (p *passage) copyBody(res *http.Response) error {
	flush := func() { _ = http.NewResponseController(p.w).Flush() } // whose failure is for the next write to find out
	switch b, ok := res.Body.(interface{ Buffered() int }); {
	case res.ContentLength == 0 || p.r.Method == http.MethodHead:
		return nil
	case !ok || b.Buffered() == 0:
		flush()
	}
	gather := transport.GatherOf(p.r)
	piece := pieces.Get().(*[32 << 10]byte)
	defer pieces.Put(piece)
	for {
		n, err := res.Body.Read(piece[:])
		last := errors.Is(err, io.EOF)
		if n > 0 {
			p.flow.Sent(n)
			if res.ContentLength > 0 && last {
				_, err := p.w.Write(piece[:n]) // which the server sends when this returns
				return err
			}
			framed := n > smallPiece && res.ContentLength < 0
			if framed {
				gather.Begin()
			}
			_, failed := p.w.Write(piece[:n])
			flush()
			if framed {
				gather.End()
			}
			if failed != nil {
				return failed
			}
		}
		switch {
		case last && n == 0 && res.ContentLength < 0:
			flush() // or the server would give an empty body a length
			return nil
		case last:
			return nil
		case err != nil:
			return err
		}
	}
}

// sentBody is a request's body that knows whether it has been read to its end. The server's is not closed by whoever
// sends it on, since that would read what is left, of which there may be no end.
type sentBody struct {
	body        io.Reader
	ended, over atomic.Bool
}

// Read reads from the body for as long as the exchange is not over: then it is the server's again.
func (b *sentBody) Read(p []byte) (int, error) {
	if b.over.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.body.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return n, err
}

// Close does nothing.
func (b *sentBody) Close() error { return nil }

// forget ends the reading.
func (b *sentBody) forget() { b.over.Store(true) }

// unread says whether something may be left; nil is no body.
func (b *sentBody) unread() bool { return b != nil && !b.ended.Load() }
