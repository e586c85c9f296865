package portproxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

func TestP01_RoutesByNameAndByHeaders(t *testing.T) {
	for _, tc := range []struct {
		host, id, port string
		want           route
		bad            string
	}{
		{host: "8080-abc.e2b.app", want: route{"abc", 8080}},
		{host: "8080-abc.wrenn.test:3002", want: route{"abc", 8080}},
		{host: "8080-ABC.Wrenn.Test", want: route{"abc", 8080}},
		{host: "8080-abc", want: route{"abc", 8080}},
		{host: "8080-abc:3002", want: route{"abc", 8080}},
		{host: "8080-abc-client.e2b.app", want: route{"abc", 8080}},
		{host: "1-a.x", want: route{"a", 1}}, {host: "65535-a.x", want: route{"a", 65535}},
		{host: "8080-abc.x", id: "other", port: "1", want: route{"abc", 8080}}, // the name wins
		{host: "localhost:3002", id: "abc", port: "49983", want: route{"abc", 49983}},
		{host: "127.0.0.1:3002", id: "abc", port: "49983", want: route{"abc", 49983}},
		{host: "[::1]:3002", id: "abc", port: "49983", want: route{"abc", 49983}},
		{host: "sandbox.e2b.app", id: "abc", port: "80", want: route{"abc", 80}},
		{host: "wrenn-cp", id: "abc", port: "80", want: route{"abc", 80}},
		{host: "localhost", bad: "must have the form"},
		{host: "localhost", id: "abc", bad: "E2b-Sandbox-Port is missing"},
		{host: "localhost", port: "80", bad: "E2b-Sandbox-Id is missing"},
		{host: "localhost", id: "../x", port: "80", bad: "1 to 32 characters"},
		{host: "localhost", id: "abc", port: "80x", bad: "1 to 65535"},
		{host: "0-abc.x", bad: "1 to 65535"}, {host: "65536-abc.x", bad: "1 to 65535"}, {host: "99999999999999999999-abc.x", bad: "1 to 65535"},
		{host: "8080-.x", bad: "1 to 32 characters"}, {host: "8080-a_b.x", bad: "1 to 32 characters"}, {host: "8080-" + strings.Repeat("a", 33) + ".x", bad: "1 to 32 characters"},
		{host: "+80-abc.x", bad: "must have the form"}, {host: "", bad: "must have the form"},
		{host: "99999-abc.x", id: "abc", port: "80", bad: "1 to 65535"}, // a bad name is not mended by headers
	} {
		r := &http.Request{Host: tc.host, Header: http.Header{}}
		if tc.id != "" {
			r.Header.Set("E2b-Sandbox-Id", tc.id)
		}
		if tc.port != "" {
			r.Header.Set("E2b-Sandbox-Port", tc.port)
		}
		got, err := edgeRoute(r)
		if tc.bad != "" {
			assert.ErrorContains(t, err, tc.bad, "%+v", tc)
			continue
		}
		require.NoError(t, err, "%+v", tc)
		assert.Equal(t, tc.want, got)
	}
}

func TestP01_ConnectIsRefused(t *testing.T) {
	c := newHTTPChain(t, http.NotFoundHandler())
	for _, target := range []string{"8080-abc.x:80", "10.11.0.1:22"} {
		res, _ := c.ask("CONNECT "+target+" HTTP/1.1", byName)
		assert.Equal(t, http.StatusBadRequest, res.StatusCode, target)
	}
	c.with(func() { assert.Zero(t, c.dials) })
}

func TestP01_RoutesByPath(t *testing.T) {
	for target, want := range map[string]struct {
		to   route
		rest string
	}{
		"/proxy/abc/80/":        {route{"abc", 80}, "/"},
		"/proxy/abc/80":         {route{"abc", 80}, "/"},
		"/proxy/abc/80?x=/y":    {route{"abc", 80}, "/?x=/y"},
		"/proxy/abc/80/a%2Fb/":  {route{"abc", 80}, "/a%2Fb/"},
		"/proxy/abc/80//a?b":    {route{"abc", 80}, "//a?b"},
		"/proxy/abc/8080/a":     {route{"abc", 8080}, "/a"},
		"/proxy/abc/80/proxy/x": {route{"abc", 80}, "/proxy/x"},
	} {
		to, rest, err := pathRoute(target)
		require.NoError(t, err, target)
		assert.Equal(t, want.to, to, target)
		assert.Equal(t, want.rest, rest, target)
	}
	for _, target := range []string{
		"", "/", "/proxy", "/proxy/", "/proxy/abc", "/proxy/abc/", "/proxy/abc?/80", "/proxy//80/", "/proxy/../80/", "/proxy/%2e%2e/80/", "/proxy/a%62c/80/", "/proxy/abc/8a/", "/proxy/abc/%38/",
		"/proxy/abc/0/", "/proxy/abc/70000/", "/proxy/ABC/80/", "/proxy/" + strings.Repeat("a", 33) + "/80/", "//proxy/abc/80/", "/proxy//abc/80/",
	} {
		_, _, err := pathRoute(target)
		assert.Error(t, err, target)
	}
}

func TestP08_ControlRoutesAreNotThereAndNotLookedUp(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, "reached ", r.URL.Path) }))
	envd := "Host: 49983-abc.x"
	unknown := []string{"Host: localhost", "E2b-Sandbox-Id: nobody", "E2b-Sandbox-Port: 49983"}
	c.with(func() { c.errs["nobody"] = errors.New("must not be looked up") })
	for _, path := range []string{
		"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade", "/init/", "//init", "/./init", "/a/../init", "/%69nit", "/%2finit", "/init?x=y", "/..//init", "/%2e%2e/init", "/init/.",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "OPTIONS"} {
			res, body := c.ask(method+" "+path+" HTTP/1.1", envd)
			assert.Equal(t, http.StatusNotFound, res.StatusCode, "%s %s: %s", method, path, body)
			res, _ = c.ask(method+" "+path+" HTTP/1.1", unknown...)
			assert.Equal(t, http.StatusNotFound, res.StatusCode, "%s %s", method, path)
		}
		// The agent refuses them too.
		req, err := http.NewRequestWithContext(t.Context(), "POST", c.agent, nil)
		require.NoError(t, err)
		req.URL.Opaque = "/proxy/abc/49983" + path
		req.Header.Set(transport.AgentTokenHeader, token)
		tr := transport.NewRPCTransport()
		res, err := tr.RoundTrip(req)
		require.NoError(t, err)
		assert.Equal(t, http.StatusNotFound, res.StatusCode, path)
		require.NoError(t, res.Body.Close())
		tr.CloseIdleConnections()
	}
	for _, path := range []string{"/initial", "/init/x", "/files?path=/init", "/health"} {
		res, _ := c.get(path, envd)
		assert.Equal(t, http.StatusOK, res.StatusCode, path)
	}
	res, _ := c.get("/init", byName) // a user's own port
	assert.Equal(t, http.StatusOK, res.StatusCode)
}

func TestP08_RefusalsAreTheOnesThatSDKsKnow(t *testing.T) {
	c := newHTTPChain(t, http.NotFoundHandler())
	c.with(func() {
		c.errs = map[string]error{"gone": ErrNotFound, "moving": ErrTransition, "dark": ErrUnreachable, "odd": errors.New("secret 10.11.0.7")}
		c.closed = true
	})
	for id, want := range map[string]string{
		"gone":   `{"sandboxId":"gone","message":"The sandbox was not found","code":502}`,
		"atend":  `{"sandboxId":"atend","message":"The sandbox was not found","code":502}`, // known to the edge, not to the agent
		"abc":    `{"sandboxId":"abc","message":"The sandbox is running but port is not open","port":8080,"code":502}`,
		"moving": `{"sandboxId":"moving","message":"The sandbox is changing its state, try again","code":409}`,
		"dark":   `{"sandboxId":"dark","message":"The host of the sandbox cannot be reached, try again","code":503}`,
		"odd":    `{"sandboxId":"odd","message":"The sandbox could not be looked up","code":500}`,
	} {
		res, body := c.get("/x", "Host: 8080-"+id+".x")
		assert.JSONEq(t, want, body)
		var code struct{ Code int }
		require.NoError(t, json.Unmarshal([]byte(body), &code))
		assert.Equal(t, code.Code, res.StatusCode)
		assert.Contains(t, res.Header.Get("Content-Type"), "application/json")

		res, body = c.get("/x", "Host: 8080-"+id+".x", "Sec-Fetch-Mode: navigate", "Accept: text/html,*/*", "User-Agent: Mozilla/5.0")
		assert.Equal(t, code.Code, res.StatusCode)
		assert.Contains(t, res.Header.Get("Content-Type"), "text/html")
		assert.Contains(t, body, "<code>"+id+"</code>")
		assert.NotContains(t, body, "127.0.0.1")
	}
	res, body := c.get("/x", "Host: localhost")
	assert.Equal(t, http.StatusBadRequest, res.StatusCode)
	assert.Contains(t, res.Header.Get("Content-Type"), "text/plain")
	assert.Contains(t, body, "{port}-{sandbox}")

	c.stop()
	res, body = c.get("/x", byName)
	assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode, body)
}

func TestP08_TimeoutOfADialIs504(t *testing.T) {
	c := newHTTPChain(t, http.NotFoundHandler())
	c.with(func() {
		c.dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}
		}
	})
	res, body := c.get("/", byName)
	assert.Equal(t, http.StatusGatewayTimeout, res.StatusCode, body)
	c.with(func() { assert.Equal(t, 1, c.dials, "a dial that timed out is not repeated") })
}

func TestNavigationIsJudgedByWhatIsAskedFirst(t *testing.T) {
	for _, tc := range []struct {
		mode, accept, agent string
		want                bool
	}{
		{"navigate", "*/*", "curl/8", true}, {"cors", "text/html", "Mozilla/5.0", false}, {"", "text/html,application/xml", "curl/8", true},
		{"", "application/json", "Mozilla/5.0", false}, {"", "*/*", "Mozilla/5.0", true}, {"", "", "Mozilla/5.0", true}, {"", "*/*", "curl/8", false}, {"", "", "", false},
	} {
		r := &http.Request{Header: http.Header{"Sec-Fetch-Mode": {tc.mode}, "Accept": {tc.accept}, "User-Agent": {tc.agent}}}
		assert.Equal(t, tc.want, isNavigation(r), "%+v", tc)
	}
}

func TestP05_ADialIsRepeatedUntilThePortOpens(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("late")) }))
	c.with(func() {
		c.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			c.mu.Lock()
			dials := c.dials
			c.mu.Unlock()
			if dials < 3 {
				return transport.DialGuest(ctx, network, "127.0.0.1:1")
			}
			return transport.DialGuest(ctx, network, c.guest.String())
		}
	})
	begin := time.Now()
	res, body := c.get("/", byName)
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Equal(t, "late", body)
	assert.GreaterOrEqual(t, time.Since(begin), 300*time.Millisecond)
	c.with(func() { assert.Equal(t, 3, c.dials) })

	c.with(func() { c.dials, c.dial, c.closed = 0, nil, true })
	res, _ = c.get("/", "Host: 8081-abc.x") // to which no connection is kept
	assert.Equal(t, http.StatusBadGateway, res.StatusCode)
	c.with(func() { assert.Equal(t, 3, c.dials) })
}

func FuzzPathRoute(f *testing.F) {
	f.Add("/proxy/abc/80/a?b")
	f.Fuzz(func(t *testing.T, target string) {
		to, rest, err := pathRoute(target)
		if err != nil {
			return
		}
		back := fmt.Sprintf("/proxy/%s/%d", to.id, to.port)
		if !strings.HasPrefix(rest, "/") || (strings.HasPrefix(target, back) && strings.TrimPrefix(rest, "/") != strings.TrimPrefix(target[len(back):], "/") && !strings.HasPrefix(rest, "//")) {
			t.Fatalf("%q became %+v %q", target, to, rest)
		}
	})
}

func TestV03_ATargetThatIsNoPathIsRefused(t *testing.T) {
	e := NewEdge(EdgeConfig{Logger: slog.New(slog.DiscardHandler), Lookup: func(context.Context, string) (AgentTarget, error) {
		t.Error("it was looked up")
		return AgentTarget{}, ErrNotFound
	}})
	for _, target := range []string{"x:3/health", "mailto:x"} {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: 4998-abc.localhost\r\n\r\n")))
		require.NoError(t, err)
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		assert.Equal(t, http.StatusBadRequest, w.Code, target)
	}
	for _, path := range []string{"/proxy/abc/049983/init", "/proxy/abc/0/x", "/proxy/abc/+80/x"} {
		_, _, err := pathRoute(path)
		require.Error(t, err, path)
	}
}
