package portproxy

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

// visitor is a browser, as far as links, cookies and redirects go, before an agent.
type visitor struct {
	t      *testing.T
	agent  string
	client *http.Client
}

func newVisitor(t *testing.T, c *chain) visitor {
	t.Helper()
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the agent's own") })
	s := httptest.NewServer(c.host.Protect(token, next))
	t.Cleanup(s.Close)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	tr := transport.NewProxyTransport()
	t.Cleanup(tr.CloseIdleConnections)
	return visitor{t, s.URL, &http.Client{Transport: tr, Jar: jar}}
}

func (v visitor) get(path string, header ...string) (*http.Response, string) {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), "GET", v.agent+path, nil)
	require.NoError(v.t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := v.client.Do(req)
	require.NoError(v.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(v.t, err)
	return res, string(body)
}

func TestP01_ABrowserComesByPathWithATicket(t *testing.T) {
	c := newChain(t, rawGuest(t, echoHead))
	v := newVisitor(t, c)
	res, _ := v.get("/proxy/abc/8080/")
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	res, _ = v.get("/proxy/abc/8080/?wrenn-ticket=wrong")
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	res, _ = v.get("/proxy/abc/8080/?wrenn-ticket=" + Ticket(token, "other"))
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)

	// The link leads to the page without the ticket, and the cookie never reaches the guest.
	res, body := v.get("/proxy/abc/8080?a=%2F&wrenn-ticket=" + Ticket(token, "abc") + "&b")
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.Equal(t, "/proxy/abc/8080/?a=%2F&b", res.Request.URL.RequestURI(), "with the slash that relative links need")
	line, h := parseHead(t, body)
	assert.Equal(t, "GET /?a=%2F&b HTTP/1.1", line)
	assert.Empty(t, h.Values("Cookie"))
	agent, err := url.Parse(v.agent)
	require.NoError(t, err)
	assert.Equal(t, agent.Host, h.Get("Host"))
	assert.Equal(t, agent.Host, h.Get("X-Forwarded-Host"))

	// It opens all ports of that sandbox, and nothing else; forged forwarding headers do not pass.
	_, body = v.get("/proxy/abc/9090/x", "Cookie", "mine=1", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil")
	_, h = parseHead(t, body)
	assert.Equal(t, []string{"mine=1"}, h.Values("Cookie"))
	assert.Equal(t, "127.0.0.1", h.Get("X-Forwarded-For"))
	assert.Equal(t, agent.Host, h.Get("X-Forwarded-Host"))
	c.with(func() { c.addrs["other"] = c.addrs["abc"] })
	for path, code := range map[string]int{
		"/proxy/other/8080/": http.StatusUnauthorized, "/": http.StatusUnauthorized, "/hostagent.v1/Ping": http.StatusUnauthorized,
		"/proxy/abc/49983/init": http.StatusNotFound, "/proxy/abc/x/": http.StatusBadRequest,
	} {
		res, _ := v.get(path)
		assert.Equal(t, code, res.StatusCode, path)
	}
	res, _ = v.get("/proxy/abc/8080/", transport.AgentTokenHeader, "wrong")
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode, "a wrong token is not mended by a cookie")
	_, body = v.get("/", transport.AgentTokenHeader, token)
	assert.Equal(t, "the agent's own", body)

	// A pipe is bytes, and the control plane's alone.
	res, _ = v.get("/pipe/abc/8080?wrenn-ticket=" + Ticket(token, "abc"))
	assert.Equal(t, http.StatusUnauthorized, res.StatusCode)
	res, _ = v.get("/pipe/abc/8080", transport.AgentTokenHeader, token)
	assert.Equal(t, http.StatusUpgradeRequired, res.StatusCode)
}

func TestP01_NobodyPassesWithoutAToken(t *testing.T) {
	c := newChain(t, rawGuest(t, echoHead))
	for _, ticket := range []string{"", "?wrenn-ticket=" + Ticket("", "abc")} {
		w := httptest.NewRecorder()
		c.host.Protect("", http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/proxy/abc/80/"+ticket, nil))
		assert.Equal(t, http.StatusUnauthorized, w.Code)
	}
}
