package portproxy_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
	"wrenn/impl/portproxy/portproxytest"
)

// pathsOfP03 are targets that must arrive byte for byte.
var pathsOfP03 = []string{
	"/", "/a/", "/a//b", "//a", "/a/../b", "/./a/.", "/..", "/a%2Fb", "/%2F%2e%2e/", "/a;b=c", "/a%20b", "/a+b", "/%E2%82%AC", "/a?", "/?", "/a?b=c;d", "/a?b=%zz&;", "/a?b=c?d",
	"/a?x=/../y", "/%25", "/proxy/abc/80/x", "/a%ff", "/" + strings.Repeat("x", 4000),
}

// notOfTheClient are headers that the way to a server adds; an echo leaves them out.
var notOfTheClient = []string{"Connection", "X-Forwarded-For", "X-Forwarded-Host", "Keep-Alive", "Transfer-Encoding", "Te", "Upgrade"}

// goServer is net/http with whatever it can do.
func goServer(modified time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/range", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "x.txt", modified, strings.NewReader(strings.Repeat("0123456789", 1000)))
	})
	mux.HandleFunc("/gzip", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, strings.Repeat("squeeze ", 1000))
		_ = z.Close()
	})
	mux.HandleFunc("/flushed", func(w http.ResponseWriter, _ *http.Request) {
		for i := range 5 {
			_, _ = fmt.Fprintf(w, "event %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
		}
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = fmt.Fprintf(w, "%d bytes, trailer %q", len(body), r.Trailer.Get("X-Up"))
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-More", "43")
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Add("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "late")
	})
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		code := 0
		_, _ = fmt.Sscan(r.URL.Path[len("/status/"):], &code)
		w.Header().Set("X-Own", "1")
		w.WriteHeader(code)
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", strings.ReplaceAll(r.FormValue("to"), "HOST", r.Host))
		w.WriteHeader(http.StatusFound)
	})
	mux.HandleFunc("/cookies", func(w http.ResponseWriter, r *http.Request) {
		for _, c := range []string{"a=1", "b=2; Path=/x; HttpOnly; SameSite=None; Secure", "c=; Max-Age=0", `d="q;x"; Expires=Thu, 01 Jan 1970 00:00:00 GMT`} {
			w.Header().Add("Set-Cookie", c)
		}
		_, _ = io.WriteString(w, r.Header.Get("Cookie"))
	})
	mux.HandleFunc("/refuse", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestEntityTooLarge) })
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for _, name := range notOfTheClient {
			r.Header.Del(name)
		}
		_, _ = fmt.Fprintf(w, "%s %s %s %d\n", r.Method, r.RequestURI, r.Host, r.ContentLength)
		_ = r.Header.Write(w)
		_, _ = fmt.Fprintf(w, "\n%q", body)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" && r.URL.RawPath == "" && !strings.Contains(r.URL.Path, "//") {
			mux.ServeHTTP(w, r)
			return
		}
		echo.ServeHTTP(w, r)
	})
}

func goCorpus(modified time.Time) (corpus []asked) {
	for _, p := range pathsOfP03 {
		corpus = append(corpus, one("GET", p))
	}
	for _, m := range []string{"GET", "HEAD", "OPTIONS", "DELETE", "PUT", "POST", "PATCH", "TRACE", "PROPFIND", "BREW"} {
		corpus = append(corpus, one(m, "/echo", "Accept: a", "Accept: b", "X-Odd: \"a;b\", c", "Cookie: a=b; c=d", "Accept-Encoding: br", "User-Agent: x y (z)"))
	}
	for _, m := range []string{"POST", "PUT", "PATCH", "DELETE", "GET"} {
		corpus = append(corpus, withBody(m, "/echo", "hello\x00\xff", "Content-Type: application/x"), withBody(m, "/echo", ""))
		chunked := one(m, "/echo", "Transfer-Encoding: chunked")
		chunked.raw += "5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
		corpus = append(corpus, chunked)
	}
	up := one("POST", "/trailers", "Transfer-Encoding: chunked", "Trailer: X-Up", "TE: trailers")
	up.raw += "5\r\nhello\r\n0\r\nX-Up: yes\r\n\r\n"
	corpus = append(corpus, up, one("GET", "/trailers"), one("HEAD", "/trailers"), one("GET", "/early"), one("GET", "/flushed"), one("GET", "/gzip", "Accept-Encoding: gzip"), one("GET", "/cookies", "Cookie: x=1", "Cookie: y=2"))
	for _, r := range []string{"bytes=0-9", "bytes=9990-", "bytes=-5", "bytes=0-0,5-6", "bytes=99999-", "bytes=x", "lines=1-2"} {
		if r != "bytes=0-0,5-6" { // its boundary is random
			corpus = append(corpus, one("GET", "/range", "Range: "+r), one("HEAD", "/range", "Range: "+r))
		}
	}
	for _, h := range []string{`If-None-Match: "v1"`, `If-None-Match: W/"v1"`, `If-Match: "v2"`, "If-Modified-Since: " + modified.UTC().Format(http.TimeFormat), `If-Range: "v1"`, "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:01 GMT"} {
		corpus = append(corpus, one("GET", "/range", h, "Range: bytes=0-9"), one("HEAD", "/range", h))
	}
	for _, code := range []int{200, 201, 202, 204, 205, 206, 300, 304, 400, 401, 404, 405, 410, 418, 429, 451, 500, 502, 503, 504} {
		corpus = append(corpus, one("GET", fmt.Sprintf("/status/%d", code)), one("HEAD", fmt.Sprintf("/status/%d", code)), one("POST", fmt.Sprintf("/status/%d", code)))
	}
	for _, to := range []string{"/x", "x", "../x", "?x", "", "/a//b", "//HOST/x", "http://HOST/x", "https://HOST/x", "http://localhost:1/x", "https://example.com/x", "/proxy/abc/1/x", "mailto:a@b"} {
		if to != "http://localhost:1/x" { // another port of the sandbox, which has another name
			corpus = append(corpus, one("GET", "/redirect?to="+to))
		}
	}
	corpus = append(corpus, one("GET", "/echo", "X-Huge: "+strings.Repeat("y", 200_000)),
		asked{name: "continue", raw: withBody("POST", "/echo", "hello", "Expect: 100-continue").raw, methods: []string{"POST"}},
		asked{name: "refused before the body", raw: one("POST", "/refuse", "Expect: 100-continue", "Content-Length: 5").raw, methods: []string{"POST"}},
		asked{name: "kept", raw: "GET /a HTTP/1.1\r\nHost: HOST\r\n\r\nHEAD /b HTTP/1.1\r\nHost: HOST\r\n\r\nPOST /c HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nhiGET /d HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
			methods: []string{"GET", "HEAD", "POST", "GET"}},
		asked{name: "1.0", raw: "GET /range HTTP/1.0\r\nHost: HOST\r\n\r\n"},
		asked{name: "1.0 kept", raw: "GET /range HTTP/1.0\r\nHost: HOST\r\nConnection: keep-alive\r\n\r\nGET /range HTTP/1.0\r\nHost: HOST\r\n\r\n", methods: []string{"GET", "GET"}},
		asked{name: "absolute", raw: "GET http://HOST/range HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"},
		asked{name: "absolute, seen", raw: "GET http://HOST/x?y HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
			differs: "the guest is asked in the origin form, since it is no proxy", agree: onlyStatus},
		asked{name: "OPTIONS *", raw: "OPTIONS * HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", methods: []string{"OPTIONS"},
			differs: "it asks about the server, which is us: net/http answers it", agree: onlyStatus},
	)
	for _, bad := range []string{"GET /\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: HOST\r\nno colon\r\n\r\n", "GET / HTTP/1.1\r\nHost: HOST\r\nContent-Length: x\r\n\r\n", "G\x01T / HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"GET / HTTP/9.9\r\nHost: HOST\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: HOST\r\n\r\n", "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: odd\r\n\r\n"} {
		corpus = append(corpus, asked{name: fmt.Sprintf("bad %q", bad), raw: bad, differs: "we refuse what is no HTTP before it has a route", agree: onlyStatus})
	}
	return corpus
}

func TestP07_CorpusGo(t *testing.T) {
	modified := time.Now().Add(-time.Hour)
	s := httptest.NewServer(goServer(modified))
	defer s.Close()
	sameAnswers(t, startCorpusChain(t), s.Listener.Addr().(*net.TCPAddr).Port, goCorpus(modified))
}

// The defects that a Chain can be given are found by what finds them here.
func TestP02_P03_TheFormerDefectsShow(t *testing.T) {
	s := httptest.NewServer(goServer(time.Now()))
	defer s.Close()
	port := s.Listener.Addr().(*net.TCPAddr).Port
	seen := func(cfg portproxytest.Config, target string) answered {
		c, err := portproxytest.Start(cfg)
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		all, err := talk(t, c.Edge, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %d-abc.x\r\nConnection: close\r\n\r\n", target, port), "GET")
		require.NoError(t, err)
		return all[0]
	}
	target := "/a%2Fb//c/?d"
	assert.Contains(t, seen(portproxytest.Config{}, target).Body, "GET "+target+" ")
	assert.Contains(t, seen(portproxytest.Config{JoinPath: true}, target).Body, "GET /a/b/c ")

	own := fmt.Sprintf("http://localhost:%d/x", port)
	assert.True(t, seen(portproxytest.Config{}, "/redirect?to="+own).has("Location: /x"))
	assert.True(t, seen(portproxytest.Config{LeaveReferences: true}, "/redirect?to="+own).has("Location: "+own))
}

// site makes files to serve.
func site(t *testing.T, dir string) {
	t.Helper()
	for name, content := range map[string]string{
		"index.html": "<h1>index</h1>", "a.txt": strings.Repeat("text ", 1000), "dir/b.html": "b", "listed/ü &.txt": "c", "listed/d e.txt": "d", "empty": "",
		"odd/%2F;x.txt": "percent",
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
}

func fileCorpus() (corpus []asked) {
	for _, p := range append(slices.Clone(pathsOfP03), "/index.html", "/a.txt", "/dir", "/dir/", "/dir?x=y", "/listed", "/listed/", "/listed/%C3%BC%20%26.txt", "/listed/d%20e.txt", "/odd/%252F%3Bx.txt", "/empty", "/none") {
		corpus = append(corpus, one("GET", p), one("HEAD", p))
	}
	for _, m := range []string{"OPTIONS", "DELETE", "PUT", "POST", "BREW"} {
		corpus = append(corpus, one(m, "/a.txt"))
	}
	for _, h := range []string{"Range: bytes=0-9", "Range: bytes=-5", "Range: bytes=99999-", "If-Modified-Since: Thu, 01 Jan 2037 00:00:00 GMT", "If-None-Match: *", "Accept-Encoding: gzip", "If-Match: \"no\""} {
		corpus = append(corpus, one("GET", "/a.txt", h), one("HEAD", "/a.txt", h))
	}
	return append(corpus, asked{name: "1.0", raw: "GET /a.txt HTTP/1.0\r\nHost: HOST\r\n\r\n"})
}

func TestP07_CorpusNginx(t *testing.T) {
	need.Program(t, "nginx")
	port := freePort(t)
	root := t.TempDir()
	require.NoError(t, os.Chmod(root, 0o755))
	site(t, root)
	startNginx(t, fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf(`
	gzip on; gzip_min_length 10; gzip_types *;
	server {
		listen 127.0.0.1:%d; root %q; autoindex on;
		location /old { return 301 /new?a=b; }
		location /abs { return 302 http://localhost:%d/x; }
		location /elsewhere { return 307 https://example.com/; }
		location /relative { absolute_redirect off; return 308 /new; }
		location /teapot { return 418; }
		location /gone { return 410 "gone"; }
		location /hang { return 444; }
		location /cookie { add_header Set-Cookie "a=b; Path=/; HttpOnly" always; add_header Refresh "5; url=/x" always; return 200 "x"; }
		location /seen { add_trailer X-Sum 1; return 200 "$request_method $request_uri $http_host $content_length $http_cookie"; }
	}`, port, root, port))
	corpus := fileCorpus()
	for _, p := range []string{"/old", "/abs", "/elsewhere", "/relative", "/teapot", "/gone", "/cookie", "/seen", "/seen/a%2Fb//c?d=%20"} {
		corpus = append(corpus, one("GET", p, "Cookie: a=b"), one("HEAD", p), withBody("POST", p, "body"))
	}
	corpus = append(corpus, asked{name: "closed without an answer", raw: one("GET", "/hang").raw, differs: "there is nothing to pass on",
		agree: func(t *testing.T, _, through []answered, directErr, _ error) {
			require.Error(t, directErr)
			assert.Equal(t, "502 Bad Gateway", through[0].Status)
		}})
	sameAnswers(t, startCorpusChain(t), port, corpus)
}

func TestP07_CorpusPython(t *testing.T) {
	need.Program(t, "python3")
	port := freePort(t)
	root := t.TempDir()
	site(t, root)
	cmd := exec.Command("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", root, fmt.Sprint(port))
	var log bytes.Buffer
	cmd.Stderr, cmd.Stdout = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	waitFor(t, fmt.Sprintf("127.0.0.1:%d", port))
	sameAnswers(t, startCorpusChain(t), port, fileCorpus())
}
