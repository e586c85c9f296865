package portproxy

import (
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

// references are what guests say, and what must come out: at the agent by path, through the control plane by
// name and by headers. The client asked for /dir/file?q on port 8080; by name of 8080-abc.wrenn.test:3002, by
// path of agent.test:7070, by headers of door.test:3002.
var references = []struct{ guest, path, name, headers string }{
	// Relative to the root.
	{"/", "/proxy/abc/8080/", "/", "/"},
	{"/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"/x//y/?a=/b#c", "/proxy/abc/8080/x//y/?a=/b#c", "/x//y/?a=/b#c", "/x//y/?a=/b#c"},
	{"/proxy/abc/8080/x", "/proxy/abc/8080/proxy/abc/8080/x", "/proxy/abc/8080/x", "/proxy/abc/8080/x"}, // a path of the guest's own
	{"/proxy/abc/80", "/proxy/abc/8080/proxy/abc/80", "/proxy/abc/80", "/proxy/abc/80"},
	{"/a%2Fb;c", "/proxy/abc/8080/a%2Fb;c", "/a%2Fb;c", "/a%2Fb;c"},
	{"/../x", "/proxy/abc/8080/x", "/x", "/x"},
	{"/a/../../../x/.", "/proxy/abc/8080/x/", "/x/", "/x/"},
	{"/%2e%2E/x", "/proxy/abc/8080/x", "/x", "/x"},
	{`/..\..\x`, "/proxy/abc/8080/x", "/x", "/x"},
	{"/a/../x", "/proxy/abc/8080/a/../x", "/a/../x", "/a/../x"},
	// Absolute to the target: by localhost, by its addresses.
	{"http://localhost:8080/x?y#z", "/proxy/abc/8080/x?y#z", "/x?y#z", "/x?y#z"},
	{"http://LocalHost:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://localhost:8080", "/proxy/abc/8080/", "/", "/"},
	{"http://localhost:8080?q", "/proxy/abc/8080/?q", "/?q", "/?q"},
	{"https://127.0.0.1:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://127.8.9.1:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://[::1]:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://0.0.0.0:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://[::]:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://169.254.0.21:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://user@localhost:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"//localhost:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"//[::1]:8080/x", "/proxy/abc/8080/x", "/x", "/x"},
	{"http://localhost:8080//evil.test/x", "/proxy/abc/8080//evil.test/x", "//8080-abc.wrenn.test:3002//evil.test/x", "//door.test:3002//evil.test/x"},
	{"http://localhost:8080/../../x", "/proxy/abc/8080/x", "/x", "/x"},
	// Another port of the same sandbox.
	{"http://localhost:3000/x", "/proxy/abc/3000/x", "//3000-abc.wrenn.test:3002/x", "http://localhost:3000/x"},
	{"http://localhost/x", "/proxy/abc/80/x", "//80-abc.wrenn.test:3002/x", "http://localhost:80/x"},
	{"https://localhost/x", "/proxy/abc/443/x", "//443-abc.wrenn.test:3002/x", "http://localhost:443/x"},
	{"http://localhost:80808/x", "http://localhost:80808/x", "http://localhost:80808/x", "http://localhost:80808/x"},
	// By the public name: PUBLIC stands for the Host that the client sent.
	{"http://PUBLIC/x?y", "http://PUBLIC/proxy/abc/8080/x?y", "http://PUBLIC/x?y", "http://PUBLIC/x?y"},
	{"https://PUBLIC/x", "https://PUBLIC/proxy/abc/8080/x", "https://PUBLIC/x", "https://PUBLIC/x"}, // the scheme stays, or a redirect to https would loop
	{"//PUBLIC/x", "//PUBLIC/proxy/abc/8080/x", "//PUBLIC/x", "//PUBLIC/x"},
	{"http://PUBLIC", "http://PUBLIC/proxy/abc/8080/", "http://PUBLIC/", "http://PUBLIC/"},
	{"http://PUBLIC/proxy/abc/8080/x", "http://PUBLIC/proxy/abc/8080/proxy/abc/8080/x", "http://PUBLIC/proxy/abc/8080/x", "http://PUBLIC/proxy/abc/8080/x"},
	{"http://NAME:8080/x", "/proxy/abc/8080/x", "/x", "/x"}, // the public name with the guest's own port
	{"http://NAME:8081/x", "http://NAME:8081/x", "http://NAME:8081/x", "http://NAME:8081/x"},
	// Relative to what was asked for.
	{"x", "x", "x", "x"}, {"./x", "./x", "./x", "./x"}, {"../x", "../x", "../x", "../x"}, {"?x", "?x", "?x", "?x"}, {"#x", "#x", "#x", "#x"}, {"", "", "", ""},
	{"../../x", "/proxy/abc/8080/x", "/x", "/x"}, // stops at the root
	{"../../proxy/abc/8080/x", "/proxy/abc/8080/proxy/abc/8080/x", "/proxy/abc/8080/x", "/proxy/abc/8080/x"},
	// Elsewhere.
	{"http://example.com/x", "http://example.com/x", "http://example.com/x", "http://example.com/x"},
	{"//example.com/proxy/abc/8080/x", "//example.com/proxy/abc/8080/x", "//example.com/proxy/abc/8080/x", "//example.com/proxy/abc/8080/x"},
	{"http://localhost.example.com:8080/x", "http://localhost.example.com:8080/x", "http://localhost.example.com:8080/x", "http://localhost.example.com:8080/x"},
	{"http://localhost@example.com:8080/x", "http://localhost@example.com:8080/x", "http://localhost@example.com:8080/x", "http://localhost@example.com:8080/x"},
	{"mailto:a@b", "mailto:a@b", "mailto:a@b", "mailto:a@b"}, {"http:x", "http:x", "http:x", "http:x"},
	{"http://10.11.0.9:8080/x", "http://10.11.0.9:8080/x", "http://10.11.0.9:8080/x", "http://10.11.0.9:8080/x"},
}

const askedFor = "/dir/file?q"

// askAgent asks the agent itself, by path, and returns the answer without following it.
func (c *chain) askAgent(host, target string, header ...string) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), "GET", c.agent, nil)
	require.NoError(c.t, err)
	req.URL.Opaque = target
	req.Host = host
	req.Header.Set(transport.AgentTokenHeader, token)
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	tr := transport.NewRPCTransport()
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	require.NoError(c.t, err)
	_, err = io.Copy(io.Discard, res.Body)
	require.NoError(c.t, err)
	require.NoError(c.t, res.Body.Close())
	return res
}

func TestP02_RedirectsComeOutRight(t *testing.T) {
	var location string
	c := newChain(t, rawGuest(t, func(string) string {
		return "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nContent-Location: " + location + "\r\nLocation: " + location + "\r\n\r\n"
	}))
	for _, tc := range references {
		for way, ask := range map[string]func() (*http.Response, string, string){
			"path": func() (*http.Response, string, string) {
				return c.askAgent("agent.test:7070", "/proxy/abc/8080"+askedFor), tc.path, "agent.test:7070"
			},
			"name": func() (*http.Response, string, string) {
				res, _ := c.get(askedFor, byName)
				return res, tc.name, "8080-abc.wrenn.test:3002"
			},
			"headers": func() (*http.Response, string, string) {
				res, _ := c.get(askedFor, "Host: door.test:3002", "E2b-Sandbox-Id: abc", "E2b-Sandbox-Port: 8080")
				return res, tc.headers, "door.test:3002"
			},
		} {
			public := map[string]string{"path": "agent.test:7070", "name": "8080-abc.wrenn.test:3002", "headers": "door.test:3002"}[way]
			name, _, _ := strings.Cut(public, ":")
			names := strings.NewReplacer("PUBLIC", public, "NAME", name)
			location = names.Replace(tc.guest)
			res, want, _ := ask()
			want = names.Replace(want)
			assert.Equal(t, want, res.Header.Get("Location"), "%s: %s", way, tc.guest)
			assert.Equal(t, want, res.Header.Get("Content-Location"), "%s: %s", way, tc.guest)
		}
	}
}

// A prefix ends at a segment: port 80 is none of port 8080's, sandbox a none of sandbox ab's.
func TestP02_NoPrefixEndsInsideASegment(t *testing.T) {
	f := nameForm{to: route{id: "a", port: 80}, host: "80-a.x", byName: true}
	for ref, want := range map[string]string{
		"/proxy/a/80":     "/",
		"/proxy/a/80/x":   "/x",
		"/proxy/a/80?x":   "/?x",
		"/proxy/a/8080/x": "//8080-a.x/x",
		"/proxy/a/80x/y":  "/proxy/a/80x/y",
		"/proxy/ab/80/x":  "/proxy/ab/80/x",
		"/proxy/a/080/x":  "/proxy/a/080/x",
		"/proxya/80/x":    "/proxya/80/x",
		"/Proxy/a/80/x":   "/Proxy/a/80/x",
		"proxy/a/80/x":    "proxy/a/80/x",
		"/x/proxy/a/80/x": "/x/proxy/a/80/x",
	} {
		assert.Equal(t, want, f.reference(ref), ref)
	}
	cookies := f.rewriter()
	assert.Equal(t, "a=b; Path=/proxy/a/8080/x", cookies.cookie("a=b; Path=/proxy/a/8080/x"))
	assert.Equal(t, "a=b; Path=/x", cookies.cookie("a=b; Path=/proxy/a/80/x"))
}

func TestP02_CookiesAndRefresh(t *testing.T) {
	type forms struct{ guest, path, name string }
	for header, cases := range map[string][]forms{
		"Set-Cookie": {
			{"a=b", "a=b", "a=b"},
			{"a=b; Path=/", "a=b; Path=/proxy/abc/8080/", "a=b; Path=/"},
			{"a=b;path=/x; HttpOnly", "a=b;path=/proxy/abc/8080/x; HttpOnly", "a=b;path=/x; HttpOnly"},
			{"a=Path=/; Max-Age=1", "a=Path=/; Max-Age=1", "a=Path=/; Max-Age=1"},
			{"a=b; Path=x; Secure", "a=b; Path=x; Secure", "a=b; Path=x; Secure"}, // clients take no such path
			{"a=b; Path", "a=b; Path", "a=b; Path"},
			{"a=b; Domain=localhost; Path=/", "a=b; Path=/proxy/abc/8080/", "a=b; Path=/"},
			{"a=b; Domain=127.0.0.1", "a=b", "a=b"},
			{"a=b; Domain=.PUBLIC; SameSite=Lax", "a=b; SameSite=Lax", "a=b; SameSite=Lax"},
			{"a=b; Domain=test", "a=b", "a=b"}, // would reach other sandboxes
			{"a=b; Domain=example.com", "a=b; Domain=example.com", "a=b; Domain=example.com"},
			{"a=b; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/proxy/abc/8080", "a=b; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/proxy/abc/8080/proxy/abc/8080", "a=b; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/proxy/abc/8080"},
		},
		"Refresh": {
			{"5", "5", "5"}, {"5;", "5;", "5;"}, {"5; url=", "5; url=", "5; url="},
			{"5; url=/x", "5; url=/proxy/abc/8080/x", "5; url=/x"},
			{"5;URL = '/x'", "5;URL = '/proxy/abc/8080/x'", "5;URL = '/x'"},
			{`0, url="http://localhost:8080/x"`, `0, url="/proxy/abc/8080/x"`, `0, url="/x"`},
			{"0;/x?a;b", "0;/proxy/abc/8080/x?a;b", "0;/x?a;b"},
			{"5; url=x", "5; url=x", "5; url=x"}, {"5; url='/x", "5; url='/proxy/abc/8080/x", "5; url='/x"},
		},
	} {
		for _, tc := range cases {
			var value string
			c := newChain(t, rawGuest(t, func(string) string {
				return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n" + header + ": " + value + "\r\n" + header + ": " + value + "\r\n\r\n"
			}))
			value = strings.ReplaceAll(tc.guest, "PUBLIC", "agent.test")
			assert.Equal(t, []string{tc.path, tc.path}, c.askAgent("agent.test:7070", "/proxy/abc/8080/").Header[header], tc.guest)
			value = strings.ReplaceAll(tc.guest, "PUBLIC", "8080-abc.wrenn.test")
			res, _ := c.get("/", byName)
			assert.Equal(t, []string{tc.name, tc.name}, res.Header[header], tc.guest)
		}
	}
}

// What the sandbox asked to see as Host means the sandbox, in either direction.
func TestP04_TheMaskIsSeenAndTakenBack(t *testing.T) {
	c := newChain(t, rawGuest(t, func(head string) string {
		return "HTTP/1.1 302 Found\r\nLocation: http://dev.test:8080/x\r\n" + strings.TrimPrefix(echoHead(head), "HTTP/1.1 200 OK\r\n")
	}))
	c.with(func() { c.targets["abc"] = AgentTarget{MaskHost: "dev.test:${PORT}"} })
	res, body := c.get("/", byName)
	_, h := parseHead(t, body)
	assert.Equal(t, "dev.test:8080", h.Get("Host"))
	assert.Equal(t, "8080-abc.wrenn.test:3002", h.Get("X-Forwarded-Host"))
	assert.Equal(t, "/x", res.Header.Get("Location"))

	_, body = c.get("/", "Host: 49983-abc.wrenn.test")
	_, h = parseHead(t, body)
	assert.Equal(t, "49983-abc.wrenn.test", h.Get("Host"), "the guest daemon sees no mask")
}

// FuzzReferences: whatever the guest says, a client by path stays below the prefix or goes where the guest
// sent it, and by name it goes where it would have gone without us.
func FuzzReferences(f *testing.F) {
	for _, tc := range references {
		f.Add(tc.guest)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		if strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }) {
			return // no header field can hold it, or it is not for url.Parse to say what browsers make of it
		}
		u, err := url.Parse(ref)
		if err != nil || u.Opaque != "" || regexp.MustCompile("(?i)%2[ef]").MatchString(ref) {
			return
		}
		if _, after, ok := strings.Cut(ref, "//"); ok && u.Host == "" && strings.HasPrefix(after, "/") {
			return // "///x": to browsers x is a host
		}
		to := route{id: "abc", port: 8080}
		public := "8080-abc.x"
		agent := pathForm{to: to, public: public, own: []netip.Addr{netip.MustParseAddr("10.11.0.1")}, base: askedFor}.reference(ref)
		viaPath, err := url.Parse(agent)
		if err != nil {
			t.Fatalf("%q became %q: %v", ref, agent, err)
		}
		base := &url.URL{Scheme: "http", Host: public, Path: "/proxy/abc/8080/dir/file"}
		there := base.ResolveReference(viaPath)
		if there.Host == public && !strings.HasPrefix(there.Path, "/proxy/abc/") {
			t.Fatalf("%q became %q, which leads to %q", ref, agent, there)
		}
		name := nameForm{to: to, host: public, byName: true}.reference(agent)
		viaName, err := url.Parse(name)
		if err != nil {
			t.Fatalf("%q became %q: %v", agent, name, err)
		}
		direct := &url.URL{Scheme: "http", Host: public, Path: "/dir/file"}
		want, got := direct.ResolveReference(u), direct.ResolveReference(viaName)
		// url.URL keeps fewer slashes than RFC 3986 where dots are removed, and encodes as it likes.
		squeeze := func(u *url.URL) string {
			return u.Host + regexp.MustCompile("/+").ReplaceAllString(u.Path, "/") + "?" + u.RawQuery + "#" + u.Fragment
		}
		if want.Host == public && squeeze(want) != squeeze(got) && want.Path != "" {
			t.Fatalf("%q became %q by name: %q, not %q", ref, name, got, want)
		}
	})
}
