package files

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"wrenn/impl/envd/settings"
	"wrenn/impl/need"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022)
	goleak.VerifyTestMain(m)
}

// server serves the routes, with relative paths starting in a directory of the test's own.
type server struct {
	*httptest.Server
	t        *testing.T
	dir      string
	settings *settings.Settings
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), settings: &settings.Settings{}}
	s.settings.Apply(settings.Update{Workdir: &s.dir})
	h := NewHandler(s.settings, slog.New(slog.DiscardHandler))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /files", h.Get)
	mux.HandleFunc("POST /files", h.Post)
	mux.HandleFunc("POST /files/compose", h.Compose)
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

type reply struct {
	status int
	header http.Header
	body   string
}

// do makes a request; header is "Name: value" lines.
func (s *server) do(method, route string, body io.Reader, header ...string) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+route, body)
	require.NoError(s.t, err)
	req.Header.Set("Accept-Encoding", "identity")
	for _, h := range header {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	res, err := s.Client().Do(req)
	require.NoError(s.t, err)
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	require.NoError(s.t, err)
	return reply{res.StatusCode, res.Header, string(raw)}
}

func (s *server) put(path, content string, header ...string) reply {
	s.t.Helper()
	return s.do(http.MethodPost, "/files?path="+url.QueryEscape(path), strings.NewReader(content),
		append(header, "Content-Type: application/octet-stream")...)
}

func (s *server) get(path string, header ...string) reply {
	s.t.Helper()
	return s.do(http.MethodGet, "/files?path="+url.QueryEscape(path), nil, header...)
}

func (r reply) requireError(t *testing.T, status int, contains string) {
	t.Helper()
	require.Equal(t, status, r.status, r.body)
	var body struct {
		Code    int
		Message string
	}
	require.NoError(t, json.Unmarshal([]byte(r.body), &body), r.body)
	assert.Equal(t, status, body.Code)
	assert.Contains(t, body.Message, contains)
}

func TestG03_UploadAndDownload(t *testing.T) {
	s := newServer(t)
	r := s.put("a/b/ü x.txt", "hello")
	require.Equal(t, 200, r.status, r.body)
	full := filepath.Join(s.dir, "a/b/ü x.txt")
	assert.JSONEq(t, fmt.Sprintf(`[{"path":%q,"name":"ü x.txt","type":"file"}]`, full), r.body)
	r = s.get("a/b/ü x.txt")
	assert.Equal(t, "hello", r.body)
	assert.Equal(t, "5", r.header.Get("Content-Length"))
	assert.True(t, strings.HasPrefix(r.header.Get("Content-Disposition"), "inline; filename"))
	for path, mode := range map[string]os.FileMode{"a": 0o755, "a/b": 0o755, "a/b/ü x.txt": 0o644} {
		info, err := os.Stat(filepath.Join(s.dir, path))
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode().Perm(), path)
	}
	s.put("a/b/ü x.txt", "hi")
	assert.Equal(t, "hi", s.get(full).body, "overwriting truncates")
}

func TestG03_RangesAndConditions(t *testing.T) {
	s := newServer(t)
	s.put("f", "0123456789")
	r := s.get("f", "Range: bytes=2-4")
	assert.Equal(t, 206, r.status)
	assert.Equal(t, "234", r.body)
	assert.Equal(t, "bytes 2-4/10", r.header.Get("Content-Range"))
	r = s.get("f", "Range: bytes=2-4", "Accept-Encoding: gzip")
	assert.Equal(t, "234", r.body, "a range is of the plain content")
	assert.Equal(t, 416, s.get("f", "Range: bytes=50-").status)
	modified := r.header.Get("Last-Modified")
	assert.Equal(t, 304, s.get("f", "If-Modified-Since: "+modified).status)
	assert.Equal(t, 412, s.get("f", "If-Unmodified-Since: "+time.Unix(0, 0).UTC().Format(http.TimeFormat)).status)
	head := s.do(http.MethodHead, "/files?path=f", nil)
	assert.Equal(t, "10", head.header.Get("Content-Length"))
}

func TestG03_GzipBothWays(t *testing.T) {
	s := newServer(t)
	content := strings.Repeat("wrenn ", 10000)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write([]byte(content))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.Equal(t, 200, s.put("f", zipped.String(), "Content-Encoding: gzip").status)
	assert.Equal(t, content, s.get("f").body)

	r := s.get("f", "Accept-Encoding: gzip")
	require.Equal(t, "gzip", r.header.Get("Content-Encoding"))
	assert.Less(t, len(r.body), len(content)/10)
	back, err := gzip.NewReader(strings.NewReader(r.body))
	require.NoError(t, err)
	plain, err := io.ReadAll(back)
	require.NoError(t, err)
	assert.Equal(t, content, string(plain))

	s.put("g", "not gzip", "Content-Encoding: gzip").requireError(t, 400, "gzip")
	s.put("g", zipped.String()[:zipped.Len()-9], "Content-Encoding: gzip").requireError(t, 400, "read body")
	s.put("g", "x", "Content-Encoding: br").requireError(t, 400, "Content-Encoding")
	s.get("f", "Accept-Encoding: br, identity;q=0").requireError(t, 406, "Accept-Encoding")
}

func TestAcceptEncoding(t *testing.T) {
	for header, want := range map[string][2]bool{
		"": {false, true}, "gzip": {true, true}, "GZIP;q=0.5": {true, true}, "gzip, identity;q=0": {true, true},
		"gzip, deflate": {false, true}, "gzip, deflate, br, zstd": {false, true}, "identity": {false, true},
		"gzip;q=0": {false, true}, "gzip;q=0.1, identity;q=0.9": {false, true}, "*;q=0": {false, false},
		"identity;q=0, *": {true, true}, "gzip, deflate, identity;q=0": {true, true}, "br, identity;q=0": {false, false},
	} {
		zip, ok := encoding(header)
		assert.Equal(t, want, [2]bool{zip, ok}, "%q", header)
	}
}

func TestG03_EmptyAndSpecialFiles(t *testing.T) {
	s := newServer(t)
	s.put("empty", "")
	r := s.get("empty")
	assert.Equal(t, 200, r.status)
	assert.Equal(t, "0", r.header.Get("Content-Length"))
	assert.Contains(t, s.get("/proc/self/status").body, "Name:")
	s.get(s.dir).requireError(t, 400, "is a directory")
	s.get("/dev/zero").requireError(t, 400, "not a regular file")
	require.NoError(t, unix.Mkfifo(filepath.Join(s.dir, "fifo"), 0o644))
	s.get("fifo").requireError(t, 400, "not a regular file")
	s.put("fifo", "x").requireError(t, 400, "not a regular file")
	s.put(s.dir, "x").requireError(t, 400, "is a directory")
	s.get("none").requireError(t, 404, "no such file")
	s.put("empty/below", "x").requireError(t, 400, "not a directory")
}

func TestV02_PathsThatNameNothing(t *testing.T) {
	s := newServer(t)
	for path, message := range map[string]string{
		"": "path: is needed", "~root/x": "only ~", "a\x00b": "NUL", strings.Repeat("a/", 2100): "longer than 4096",
		strings.Repeat("n", 300): "name too long",
	} {
		s.get(path).requireError(t, 400, message)
		s.put(path, "x").requireError(t, 400, message)
	}
	s.do("GET", "/files?path=x&username=no-such-user", nil).requireError(t, 401, "unknown user")
	s.get("x", "Authorization: Bearer x").requireError(t, 401, "Authorization")
}

// form builds a multipart body of name, filename and content triples.
func form(t *testing.T, parts ...[3]string) (io.Reader, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		h := textproto.MIMEHeader{}
		d := fmt.Sprintf(`form-data; name="%s"`, p[0])
		if p[1] != "" {
			d += fmt.Sprintf(`; filename="%s"`, p[1])
		}
		h.Set("Content-Disposition", d)
		pw, err := w.CreatePart(h)
		require.NoError(t, err)
		_, err = pw.Write([]byte(p[2]))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return &b, "Content-Type: " + w.FormDataContentType()
}

func TestG03_FormsInAnyOrder(t *testing.T) {
	for name, c := range map[string]struct {
		query string
		parts [][3]string
		want  map[string]string
	}{
		"path in the query":  {"?path=q", [][3]string{{"file", "ignored", "1"}}, map[string]string{"q": "1"}},
		"names of the parts": {"", [][3]string{{"file", "d/one", "1"}, {"file", "d/two", "2"}}, map[string]string{"d/one": "1", "d/two": "2"}},
		"path before file":   {"", [][3]string{{"path", "", "p"}, {"file", "x", "1"}}, map[string]string{"p": "1"}},
		"path after file":    {"", [][3]string{{"file", "x", "1"}, {"path", "", "p"}}, map[string]string{"p": "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			body, kind := form(t, c.parts...)
			r := s.do(http.MethodPost, "/files"+c.query, body, kind)
			require.Equal(t, 200, r.status, r.body)
			found := map[string]string{}
			for path := range c.want {
				raw, err := os.ReadFile(filepath.Join(s.dir, path))
				require.NoError(t, err)
				found[path] = string(raw)
			}
			assert.Equal(t, c.want, found)
			_, err := os.Stat(filepath.Join(s.dir, "x"))
			require.ErrorIs(t, err, os.ErrNotExist, "the part's name was not asked for")
			var out []written
			require.NoError(t, json.Unmarshal([]byte(r.body), &out))
			assert.Len(t, out, len(c.want))
		})
	}
}

func TestV03_FormsThatAreRefused(t *testing.T) {
	s := newServer(t)
	for name, c := range map[string]struct {
		parts   [][3]string
		message string
	}{
		"nothing":            {nil, "no part named"},
		"no file":            {[][3]string{{"path", "", "p"}}, "no part named"},
		"no path":            {[][3]string{{"file", "", "1"}}, "path: is needed"},
		"unknown part":       {[][3]string{{"other", "x", "1"}}, `unknown part "other"`},
		"one path for two":   {[][3]string{{"file", "a", "1"}, {"file", "b", "1"}, {"path", "", "p"}}, "for 2 files"},
		"path over the size": {[][3]string{{"path", "", strings.Repeat("a", 5000)}}, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			body, kind := form(t, c.parts...)
			s.do(http.MethodPost, "/files", body, kind).requireError(t, 400, c.message)
		})
	}
	body, kind := form(t, [3]string{"file", "cut", strings.Repeat("x", 1000)})
	cut, err := io.ReadAll(io.LimitReader(body, 500))
	require.NoError(t, err)
	s.do(http.MethodPost, "/files", bytes.NewReader(cut), kind).requireError(t, 400, "read body")
	s.do(http.MethodPost, "/files?path=x", strings.NewReader("x"), "Content-Type: text/plain").requireError(t, 400, "Content-Type")
	found, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	assert.Empty(t, found, "a refused upload leaves nothing")
}

func TestG03_Metadata(t *testing.T) {
	s := newServer(t)
	r := s.put("f", "x", "X-Metadata-Author: me", "X-Metadata-Two: a b")
	require.Equal(t, 200, r.status, r.body)
	assert.Contains(t, r.body, `"metadata":{"author":"me","two":"a b"}`)
	s.put("f", "x", "X-Metadata-Other: 1")
	names := make([]byte, 1000)
	n, err := unix.Listxattr(filepath.Join(s.dir, "f"), names)
	require.NoError(t, err)
	assert.Equal(t, "user.e2b.other\x00", string(names[:n]))
	s.put("f", "x", "X-Metadata-"+strings.Repeat("k", 247)+": v").requireError(t, 400, "key of 247 bytes")
	s.put("f", "x", "X-Metadata-K: "+strings.Repeat("v", 4096)).requireError(t, 400, "4096 bytes")
	s.put("f", "x", "X-Metadata-K: ü").requireError(t, 400, "printable ASCII")
}

func TestG03_FilesBelongToTheUser(t *testing.T) {
	need.Root(t)
	s := newServer(t)
	require.Equal(t, 200, s.do(http.MethodPost, "/files?path=new/dir/f&username=nobody", strings.NewReader("x"), "Content-Type: application/octet-stream").status)
	for path, uid := range map[string]uint32{"": 0, "new": 65534, "new/dir": 65534, "new/dir/f": 65534} {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(s.dir, path), &st))
		assert.Equal(t, uid, st.Uid, "%q", path)
	}
}

func TestG03_FullDisk(t *testing.T) {
	need.Root(t)
	s := newServer(t)
	small := filepath.Join(s.dir, "small")
	require.NoError(t, os.Mkdir(small, 0o755))
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(small, unix.MNT_DETACH)) })
	s.put("small/f", strings.Repeat("x", 1<<20)).requireError(t, 507, "no space left")
	body, kind := form(t, [3]string{"file", "small/g", strings.Repeat("x", 1<<20)})
	s.do(http.MethodPost, "/files", body, kind).requireError(t, 507, "no space left")
}

func TestCompose(t *testing.T) {
	s := newServer(t)
	s.put("p1", "one ")
	s.put("p2", "two")
	compose := func(body string) reply { return s.do(http.MethodPost, "/files/compose", strings.NewReader(body)) }
	compose(`{"source_paths":["p1","none"],"destination":"out/all"}`).requireError(t, 404, `none"`)
	assert.Equal(t, "one ", s.get("p1").body, "a failure leaves the sources")
	r := compose(`{"source_paths":["p1","p2"],"destination":"out/all"}`)
	require.Equal(t, 200, r.status, r.body)
	assert.Equal(t, "one two", s.get("out/all").body)
	assert.Equal(t, 404, s.get("p1").status)
	left, err := os.ReadDir(filepath.Join(s.dir, "out"))
	require.NoError(t, err)
	assert.Len(t, left, 1)
	s.put("p3", "!")
	require.Equal(t, 200, compose(`{"source_paths":["out/all","p3"],"destination":"out/all"}`).status)
	assert.Equal(t, "one two!", s.get("out/all").body, "the destination may be a source")
	for body, message := range map[string]string{
		`{`: "read body", `{"source_paths":[],"destination":"x"}`: "source_paths", `{"source_paths":["p"]}`: "destination",
		`{"source_paths":"p"}`: "source_paths", `{"source_paths":["~x/p"],"destination":"x"}`: "source_paths[0]",
	} {
		compose(body).requireError(t, 400, message)
	}
}
