package hopserver

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tell answers with all that a handler is told, and in the way that the request's path asks for.
func tell(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex() // as ours always has it
	if r.Host == "" && r.ProtoAtLeast(1, 1) {            // which ours refuses by itself, as if there were none
		w.Header().Set("Connection", "close")
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "text/plain") // net/http's server guesses
	if err != nil {
		w.Header().Set("Connection", "close") // after a body without an end theirs takes what is left for a request
	}
	text := fmt.Sprintln(r.Method, r.RequestURI, r.URL, r.Host, r.Proto, r.ContentLength, r.TransferEncoding, r.Close, len(body), string(body), err != nil)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		text += fmt.Sprintf("%s: %q\n", name, r.Header[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Trailer)) {
		text += fmt.Sprintf("trailer %s: %q\n", name, r.Trailer[name])
	}
	switch r.URL.Path {
	case "/length":
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	case "/flushed":
		_ = http.NewResponseController(w).Flush()
	case "/pieces":
		for range 10 {
			_, _ = io.WriteString(w, strings.Repeat("x", 1000))
		}
	case "/trailers":
		w.Header().Set("Trailer", "X-Announced, X-Missing, Host")
		w.Header().Set(http.TrailerPrefix+"X-Early", "0")
		defer w.Header().Set("Host", "is none")
		defer w.Header().Set("X-Announced", "1")
		defer w.Header().Set(http.TrailerPrefix+"X-Late", "2")
		_ = http.NewResponseController(w).Flush()
	case "/hints":
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
	case "/304", "/204", "/404", "/799":
		code := 0
		_, _ = fmt.Sscan(r.URL.Path[1:], &code)
		w.WriteHeader(code)
	case "/empty":
		return
	case "/close":
		w.Header().Set("Connection", "close")
	case "/odd":
		w.Header()["X-Odd"] = []string{"a\r\nX-Injected: 1", " b "}
	}
	_, _ = io.WriteString(w, text)
}

// same are requests that both servers must answer alike. What is left out of an answer by talkTo is all that differs.
var same = []string{
	"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a%2Fb//c;d?e=%zz&f HTTP/1.1\r\nHost: X:80\r\nx-FOO: a\r\nX-Foo: b\r\n\r\n",
	"GET /length HTTP/1.1\r\nHost: x\r\n\r\nGET /empty HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /flushed HTTP/1.1\r\nHost: x\r\n\r\n", "GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n", "GET /trailers HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n",
	"GET /pieces HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n",
	"GET /hints HTTP/1.1\r\nHost: x\r\n\r\n", "GET /close HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /odd HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /304 HTTP/1.1\r\nHost: x\r\n\r\nGET /204 HTTP/1.1\r\nHost: x\r\n\r\nGET /404 HTTP/1.1\r\nHost: x\r\n\r\nGET /799 HTTP/1.1\r\nHost: x\r\n\r\n",
	"HEAD /length HTTP/1.1\r\nHost: x\r\n\r\nHEAD /flushed HTTP/1.1\r\nHost: x\r\n\r\nHEAD /empty HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET / HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3;ext=1\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Not-Announced: 7\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nshort",
	"GET / HTTP/1.0\r\n\r\n", "GET /pieces HTTP/1.0\r\nHost: x\r\n\r\n", "GET /hints HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /length HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET / HTTP/1.0\r\n\r\n",
	"GET http://y/z?q HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: x\r\nX: a\x01b\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n folded: 1\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nX: 1\r\n 2\r\n\r\n", "GET / HTTP/1.1\nHost: x\n\n",
	"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "GET / HTTP/1.9\r\nHost: x\r\n\r\n", "GET / FTP/1.1\r\nHost: x\r\n\r\n", "GET /\r\n\r\n", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok", "GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
	"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", "GET /" + strings.Repeat("x", 80<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
	"", "\r\n", "GET", "GET / HTTP/1.1", strings.Repeat("\x00", 100),
}

// startBoth starts net/http's server and ours.
func startBoth(t testing.TB) (theirs, ours string) {
	t.Helper()
	_, ours = start(t, tell)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(tell))
	srv.Config.MaxHeaderBytes, srv.Config.ErrorLog = 64<<10, log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), ours
}

// talkTo sends raw, and no more, and returns all answers as text.
func talkTo(t testing.TB, addr, raw string) string {
	t.Helper()
	c := connect(t, addr)
	defer c.Close()
	go func() {
		_, _ = io.WriteString(c, raw)
		_ = c.CloseWrite()
	}()
	var all strings.Builder
	methods := append([]string{""}, methodsOf(raw)...)
	for final := true; ; {
		if final && len(methods) > 1 {
			methods = methods[1:]
		}
		if _, err := c.r.Peek(1); err != nil {
			var network net.Error
			require.False(t, errors.As(err, &network) && network.Timeout(), "%.200q: it waits for more", raw)
			return all.String()
		}
		res, err := http.ReadResponse(c.r, &http.Request{Method: methods[0]})
		if err != nil {
			rest, _ := io.ReadAll(c.r)
			return fmt.Sprint(all.String(), "what is no HTTP: ", err, len(rest) > 0)
		}
		body, err := io.ReadAll(res.Body)
		final = res.StatusCode >= 200
		switch {
		case res.Header.Get("Content-Type") == "text/plain; charset=utf-8", res.StatusCode == http.StatusExpectationFailed:
			_, _ = fmt.Fprintln(&all, "refused:", res.StatusCode, res.Close)
			return all.String() // what is said of it differs
		case res.ProtoMinor == 0 && res.StatusCode < 200:
			continue // theirs has interim answers for clients that know of none
		case res.StatusCode == http.StatusNotModified:
			res.Header.Del("Content-Type") // which theirs leaves out
		case methods[0] == http.MethodHead: // theirs counts what a handler writes in vain
			res.Header.Del("Content-Length")
			res.ContentLength = 0
		}
		res.Header.Del("Date")
		_, _ = fmt.Fprintln(&all, res.Proto, res.Status, res.ContentLength, res.TransferEncoding, res.Close, res.Header, res.Trailer, string(body), err)
	}
}

// methodsOf returns the methods of the requests in raw, as far as they matter to who reads the answers.
func methodsOf(raw string) []string {
	var all []string
	for line := range strings.SplitSeq(raw, "\n") {
		if method, _, ok := strings.Cut(line, " "); ok && strings.Contains(line, " HTTP/") {
			all = append(all, cmp.Or(map[string]string{"HEAD": "HEAD"}[method[max(0, len(method)-4):]], "GET"))
		}
	}
	return append(all, "GET")
}

func TestAnswersAreThoseOfNetHTTP(t *testing.T) {
	theirs, ours := startBoth(t)
	for _, raw := range same {
		assert.Equal(t, talkTo(t, theirs, raw), talkTo(t, ours, raw), "%.200q", raw)
	}
}

// FuzzAnswersAreThoseOfNetHTTP leaves open which of several things that are wrong a refusal names.
func FuzzAnswersAreThoseOfNetHTTP(f *testing.F) {
	for _, raw := range same {
		f.Add(raw)
	}
	refusal := regexp.MustCompile(`refused: \d+ \w+`)
	theirs, ours := startBoth(f)
	f.Fuzz(func(t *testing.T, raw string) {
		for _, token := range []string{"close", "keep-alive"} { // theirs sees them also within others
			if lower := strings.ToLower(raw); strings.Count(lower, token) != strings.Count(lower, "connection: "+token+"\r\n") {
				return
			}
		}
		want, got := refusal.ReplaceAllString(talkTo(t, theirs, raw), "refused"), refusal.ReplaceAllString(talkTo(t, ours, raw), "refused")
		if want != got && want+"refused\n" != got { // theirs says nothing to up to three bytes behind a request
			t.Errorf("%q\ntheirs: %s\nours:   %s", raw, want, got)
		}
	})
}
