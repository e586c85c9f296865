package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
	"wrenn/impl/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wait is how long a test waits for what takes milliseconds: the machine may be slow and shared.
const wait = 20 * time.Second

// plane is a running control plane and a client of it.
type plane struct {
	t        testing.TB
	api      string // http://host:port
	proxy    string // host:port
	key      string
	database string
	client   *http.Client
	stop     func()
}

type setting func(*Config)

// startPlane runs a control plane over the agents until the test ends.
func startPlane(t testing.TB, agents []agentclient.Config, settings ...setting) *plane {
	t.Helper()
	p := &plane{t: t, key: store.NewAPIKey(), database: filepath.Join(t.TempDir(), "cp.db")}
	ready := make(chan Addresses, 1)
	cfg := Config{
		APIListen: "127.0.0.1:0", ProxyListen: "127.0.0.1:0", Database: p.database, Secret: bytes.Repeat([]byte{7}, 32),
		BootstrapKey: p.key, Agents: agents, ReconcileInterval: time.Hour,
		Ready: func(a Addresses) { ready <- a }, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, set := range settings {
		set(&cfg)
	}
	p.key, p.database = cfg.BootstrapKey, cfg.Database
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	tr := transport.NewProxyTransport()
	p.client = &http.Client{Transport: tr, Timeout: wait, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	p.stop = func() {
		tr.CloseIdleConnections()
		cancel()
		select {
		case err := <-ended:
			assert.NoError(t, err)
		case <-time.After(wait):
			t.Error("the control plane did not end")
		}
		p.stop = func() {}
	}
	t.Cleanup(func() { p.stop() })
	select {
	case a := <-ready:
		p.api, p.proxy = "http://"+a.API, a.Proxy
	case err := <-ended:
		require.FailNow(t, "the control plane ended at once", "%v", err)
	case <-time.After(wait):
		require.FailNow(t, "the control plane was not ready in time")
	}
	return p
}

// reply is an answer whose body has been read.
type reply struct {
	code   int
	header http.Header
	body   string
}

// do sends a request with the key. body may be nil, a string (sent as it is) or anything that becomes JSON;
// it goes out in chunks, without a length, as SDKs send it.
func (p *plane) do(method, path string, body any) reply {
	p.t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = io.MultiReader(strings.NewReader(b))
	default:
		raw, err := json.Marshal(b)
		require.NoError(p.t, err)
		reader = io.MultiReader(bytes.NewReader(raw))
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.api, reader)
	require.NoError(p.t, err)
	req.URL.Opaque = path // as it is: the client shall not clean it
	req.Header.Set("X-API-KEY", p.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	r := p.send(req)
	p.checkAnswer(req, r)
	return r
}

// described is the contract, against which every answer of the API is held.
var described = sync.OnceValues(func() (*contract, error) {
	s, err := newServer(context.Background(), Config{}, nil, nil)
	if err != nil {
		return nil, err
	}
	return s.contract, nil
})

// checkAnswer fails unless status and body are what the contract says.
func (p *plane) checkAnswer(req *http.Request, r reply) {
	p.t.Helper()
	c, err := described()
	require.NoError(p.t, err)
	target, err := url.ParseRequestURI(req.URL.Opaque)
	if err != nil {
		return
	}
	op, params, err := c.find(&http.Request{Method: req.Method, URL: target})
	if err != nil {
		return // no operation, so nothing is said of the answer
	}
	err = openapi3filter.ValidateResponse(p.t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: &op.route},
		Status:                 r.code, Header: r.header, Body: io.NopCloser(strings.NewReader(r.body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	})
	assert.NoError(p.t, err, "%s %s answered %d", req.Method, req.URL.Opaque, r.code)
}

func (p *plane) send(req *http.Request) reply {
	p.t.Helper()
	res, err := p.client.Do(req)
	require.NoError(p.t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	require.NoError(p.t, err)
	return reply{code: res.StatusCode, header: res.Header, body: string(raw)}
}

// into checks the status and decodes the body.
func (r reply) into(t testing.TB, code int, v any) {
	t.Helper()
	require.Equal(t, code, r.code, r.body)
	require.NoError(t, json.Unmarshal([]byte(r.body), v), r.body)
}

// refused checks that the answer is an error of that code, in the one form that errors have, and returns the
// message.
func (r reply) refused(t *testing.T, code int) string {
	t.Helper()
	var e struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	require.Equal(t, code, r.code, r.body)
	require.NoError(t, json.Unmarshal([]byte(r.body), &e), r.body)
	assert.Equal(t, code, e.Code)
	assert.NotEmpty(t, e.Message)
	assert.NotContains(t, e.Message, "\n")
	assert.Less(t, len(e.Message), 500)
	return e.Message
}

// create makes a sandbox by the second version of the API.
func (p *plane) create(body map[string]any) sandboxReply {
	p.t.Helper()
	if body == nil {
		body = map[string]any{}
	}
	if body["templateID"] == nil {
		body["templateID"] = "base"
	}
	var sb sandboxReply
	p.do("POST", "/v2/sandboxes", body).into(p.t, http.StatusCreated, &sb)
	return sb
}

// list returns the ids that a query of the second version lists.
func (p *plane) list(query string) (ids []string, header http.Header) {
	p.t.Helper()
	var all []listedSandbox
	r := p.do("GET", "/v2/sandboxes"+query, nil)
	r.into(p.t, http.StatusOK, &all)
	ids = []string{}
	for _, sb := range all {
		ids = append(ids, sb.SandboxID)
	}
	return ids, r.header
}

// rows returns what the store holds, opened beside the running control plane.
func (p *plane) rows() []store.Sandbox {
	p.t.Helper()
	st, err := store.Open(p.t.Context(), p.database)
	require.NoError(p.t, err)
	defer func() { require.NoError(p.t, st.Close()) }()
	rows, err := st.List(p.t.Context(), store.Query{})
	require.NoError(p.t, err)
	return rows
}

// eventually waits for what must come true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(wait); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(t, "did not come true in time", what)
		}
	}
}

// logger returns a logger that writes to the test's output.
func (p *plane) logger() *slog.Logger { return slog.New(slog.NewTextHandler(p.t.Output(), nil)) }
