package portproxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/portproxy/portproxytest"
)

// answered is one answer as it came over the wire, its framing taken off.
type answered struct {
	Status string // "200 OK"
	Header []string
	Body   string
	// Interim are the answers before it, without their headers' order.
	Interim []answered
	Trailer []string
	Err     string // of the body
}

// exceptions are the ways in which an answer through the proxy may differ from the one without it, with their
// reasons. Each takes the difference out of both.
var exceptions = []struct {
	reason string
	erase  func(a *answered, base *url.URL)
}{
	{"names of headers have no case, and net/http writes them in one; nor do headers of different names have an order", func(a *answered, _ *url.URL) {
		for i, h := range a.Header {
			name, value, _ := strings.Cut(h, ": ")
			a.Header[i] = textproto.CanonicalMIMEHeaderKey(name) + ": " + value
		}
		slices.SortStableFunc(a.Header, func(x, y string) int {
			nx, _, _ := strings.Cut(x, ":")
			ny, _, _ := strings.Cut(y, ":")
			return strings.Compare(nx, ny)
		})
	}},
	{"the reason phrase is net/http's: HTTP gives it no meaning, and HTTP/2 has none", func(a *answered, _ *url.URL) {
		a.Status, _, _ = strings.Cut(a.Status, " ")
	}},
	{"each hop has its own connections and framing: Connection, Keep-Alive, Transfer-Encoding, Trailer, and a length where the body has an end", func(a *answered, _ *url.URL) {
		a.without("Connection", "Keep-Alive", "Transfer-Encoding", "Trailer", "Proxy-Connection")
		if a.Body != "" || a.has("Content-Length: 0") {
			a.without("Content-Length")
		}
	}},
	{"clocks go on", func(a *answered, _ *url.URL) {
		for i, h := range a.Header {
			if strings.HasPrefix(h, "Date: ") {
				a.Header[i] = "Date: now"
			}
		}
	}},
	{"references to the server itself are given from the public name's root", func(a *answered, base *url.URL) {
		for i, h := range a.Header {
			name, value, _ := strings.Cut(h, ": ")
			if name != "Location" && name != "Content-Location" {
				continue
			}
			if u, err := url.Parse(value); err == nil {
				u = base.ResolveReference(u)
				if u.Hostname() == base.Hostname() || u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" {
					u.Host = "here"
				}
				a.Header[i] = name + ": " + u.String()
			}
		}
	}},
	{"a body that breaks off breaks off, at whatever byte the pieces end", func(a *answered, _ *url.URL) {
		if a.Err != "" {
			a.Err, a.Body = "broken", ""
			a.without("Content-Length")
		}
	}},
}

func (a *answered) without(names ...string) {
	a.Header = slices.DeleteFunc(a.Header, func(h string) bool {
		name, _, _ := strings.Cut(h, ":")
		return slices.Contains(names, name)
	})
}

func (a answered) has(line string) bool { return slices.Contains(a.Header, line) }

// readAnswer reads the answer to a request of that method.
func readAnswer(r *bufio.Reader, method string) (answered, error) {
	var interim []answered
	for {
		a, major, err := readHead(r)
		if err != nil {
			return a, err
		}
		code, _ := strconv.Atoi(a.Status[:min(3, len(a.Status))])
		if code >= 100 && code < 200 && code != 101 {
			interim = append(interim, a)
			continue
		}
		a.Interim = interim
		value := func(name string) string {
			for _, h := range a.Header {
				if n, v, _ := strings.Cut(h, ": "); strings.EqualFold(n, name) {
					return v
				}
			}
			return ""
		}
		var body io.Reader = r
		switch {
		case method == "HEAD" || code == 204 || code == 304 || code == 101:
			return a, nil
		case strings.EqualFold(value("Transfer-Encoding"), "chunked") && major != "HTTP/1.0":
			body = httputil.NewChunkedReader(r)
		case value("Content-Length") != "":
			n, _ := strconv.ParseInt(value("Content-Length"), 10, 64)
			raw := make([]byte, n)
			got, err := io.ReadFull(r, raw)
			a.Body = string(raw[:got])
			if err != nil {
				a.Err = err.Error()
			}
			return a, nil
		}
		raw, err := io.ReadAll(body)
		if a.Body = string(raw); err != nil {
			a.Err = err.Error()
		}
		if a.Err == "" && body != io.Reader(r) {
			for {
				line, err := r.ReadString('\n')
				if line = strings.TrimSpace(line); line == "" || err != nil {
					break
				}
				a.Trailer = append(a.Trailer, line)
			}
			slices.Sort(a.Trailer)
		}
		return a, nil
	}
}

func readHead(r *bufio.Reader) (a answered, version string, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return a, "", err
	}
	version, a.Status, _ = strings.Cut(strings.TrimSpace(line), " ")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return a, version, err
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			return a, version, nil
		}
		name, v, _ := strings.Cut(line, ":")
		a.Header = append(a.Header, name+": "+strings.TrimSpace(v))
	}
}

// talk sends raw, which holds requests of these methods, and returns the answers.
func talk(t *testing.T, addr, raw string, methods ...string) ([]answered, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(wait)))
	go func() { _, _ = io.WriteString(conn, raw) }() // a server may answer before it has read
	r := bufio.NewReader(conn)
	var all []answered
	for _, m := range methods {
		a, err := readAnswer(r, m)
		if err != nil {
			return all, err
		}
		all = append(all, a)
	}
	return all, nil
}

// asked is a case of the corpus: what is sent, HOST standing for the server's public name.
type asked struct {
	name, raw string
	methods   []string // of the requests in raw; GET if empty
	// differs says why the answers differ, and how far they still must agree.
	differs string
	agree   func(t *testing.T, direct, through []answered, directErr, throughErr error)
}

// one is a request without a body on a connection of its own.
func one(method, target string, header ...string) asked {
	lines := append([]string{method + " " + target + " HTTP/1.1", "Host: HOST", "Connection: close"}, header...)
	return asked{name: method + " " + target + " " + strings.Join(header, ", "), raw: strings.Join(lines, "\r\n") + "\r\n\r\n", methods: []string{method}}
}

func withBody(method, target, body string, header ...string) asked {
	a := one(method, target, append(header, fmt.Sprintf("Content-Length: %d", len(body)))...)
	a.raw += body
	return a
}

// sameAnswers asks the server at port directly and through the chain, and compares.
func sameAnswers(t *testing.T, c *portproxytest.Chain, port int, corpus []asked) {
	t.Helper()
	_, edgePort, _ := net.SplitHostPort(c.Edge)
	host := fmt.Sprintf("%d-abc.localhost:%s", port, edgePort)
	for _, ask := range corpus {
		methods := ask.methods
		if methods == nil {
			methods = []string{"GET"}
		}
		raw := strings.ReplaceAll(ask.raw, "HOST", host)
		direct, directErr := talk(t, fmt.Sprintf("127.0.0.1:%d", port), raw, methods...)
		through, throughErr := talk(t, c.Edge, raw, methods...)
		if ask.differs != "" {
			ask.agree(t, direct, through, directErr, throughErr)
			continue
		}
		assert.Equal(t, directErr == nil, throughErr == nil, "%s: %v, %v", ask.name, directErr, throughErr)
		for _, side := range [][]answered{direct, through} {
			for i := range side {
				for _, e := range exceptions {
					e.erase(&side[i], &url.URL{Scheme: "http", Host: host, Path: "/"})
					for j := range side[i].Interim {
						e.erase(&side[i].Interim[j], &url.URL{Scheme: "http", Host: host, Path: "/"})
					}
				}
			}
		}
		if diff := cmp.Diff(direct, through, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%.200s: directly (-) and through the proxy (+):\n%.3000s", ask.name, diff)
		}
	}
}

func startCorpusChain(t *testing.T) *portproxytest.Chain {
	t.Helper()
	c, err := portproxytest.Start(portproxytest.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// rawServer answers each connection with answer, once a request's header has come.
func rawServer(t *testing.T, answer string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			r := bufio.NewReader(conn)
			for line := "x"; line != "\r\n" && err == nil; {
				line, err = r.ReadString('\n')
			}
			_, _ = io.WriteString(conn, answer)
			_ = conn.(*net.TCPConn).CloseWrite()
			_ = conn.SetReadDeadline(time.Now().Add(time.Second)) // so that what is unread does not reset it
			_, _ = io.Copy(io.Discard, r)
			_ = conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

var oddAnswers = map[string]string{
	"1.0 without a length":          "HTTP/1.0 200 OK\r\nContent-Type: text/x\r\n\r\nuntil the end",
	"1.1 without a length":          "HTTP/1.1 200 OK\r\n\r\nuntil the end",
	"nothing known":                 "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<h1",
	"odd reason":                    "HTTP/1.1 200 Quite Fine\r\nContent-Length: 0\r\n\r\n",
	"no reason":                     "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
	"odd status":                    "HTTP/1.1 599 X\r\nContent-Length: 2\r\n\r\nhi",
	"small header names":            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-FOO_bar: 1\r\nx-foo_BAR: 2\r\n\r\nhi",
	"many of one name":              "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=1; HttpOnly\r\nSet-Cookie: b=2; Path=/\r\nSet-Cookie: a=3\r\nVia: x\r\nVia: y\r\nVary: a\r\nVary: b\r\n\r\n",
	"chunks with extensions":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\n!!!\r\n0\r\n\r\n",
	"announced trailers":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
	"trailers out of the blue":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
	"early hints":                   "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
	"processing":                    "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
	"204":                           "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
	"304 with what it would be":     "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Type: text/x\r\nDate: then\r\n\r\n",
	"location to nothing":           "HTTP/1.1 302 Found\r\nLocation: /a//b?c=/d#e\r\nContent-Length: 0\r\n\r\n",
	"location elsewhere":            "HTTP/1.1 302 Found\r\nLocation: https://example.com:8443/a\r\nContent-Length: 0\r\n\r\n",
	"location without a path":       "HTTP/1.1 201 Created\r\nLocation: ?x\r\nContent-Length: 0\r\n\r\n",
	"huge header":                   "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Huge: " + strings.Repeat("x", 300_000) + "\r\n\r\n",
	"gzip that is none":             "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
	"odd bytes in a value":          "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Odd: \"a\tb\" \xe4;;,=\r\nX-Empty:\r\n\r\n",
	"date and server":               "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: mine\r\nContent-Length: 0\r\n\r\n",
	"shorter than it said":          "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
	"chunks that break off":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
	"no type, no date, many octets": "HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + strings.Repeat("<x>", 1000),
}

func TestP07_CorpusOddAnswers(t *testing.T) {
	c := startCorpusChain(t)
	for name, answer := range oddAnswers {
		a := one("GET", "/")
		a.name = name
		sameAnswers(t, c, rawServer(t, answer), []asked{a})
	}
	// What is no HTTP is told as such.
	for _, answer := range []string{"", "hello\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "HTTP/1.1 200"} {
		through, err := talk(t, c.Edge, fmt.Sprintf("GET / HTTP/1.1\r\nHost: %d-abc.x\r\n\r\n", rawServer(t, answer)), "GET")
		require.NoError(t, err, answer)
		assert.Equal(t, "502 Bad Gateway", through[0].Status, answer)
		assert.NotContains(t, through[0].Body, "127.0.0.1")
	}
}

// onlyStatus is agreement in the statuses.
func onlyStatus(t *testing.T, direct, through []answered, directErr, throughErr error) {
	t.Helper()
	require.NoError(t, errors.Join(directErr, throughErr))
	require.Len(t, through, len(direct))
	for i := range direct {
		assert.Equal(t, direct[i].Status[:3], through[i].Status[:3])
	}
}
