package controlplane

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// through sends a GET to the sandbox proxy with these headers.
func (p *plane) through(path string, headers ...string) reply {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), "GET", "http://"+p.proxy+path, nil)
	require.NoError(p.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
	}
	return p.send(req)
}

func TestP01_TheSandboxProxyReachesGuests(t *testing.T) {
	a := newStandIn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host+" "+r.RequestURI+" "+r.Header.Get("Authorization")+" "+r.Header.Get("Wrenn-Agent-Token"))
	}))
	p := startPlane(t, []agentclient.Config{a.config("one")})
	id := p.create(nil).SandboxID
	r := p.through("/files?path=%2Fx", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "49983", "Authorization", "Basic dXNlcjo=")
	assert.Equal(t, p.proxy+" /files?path=%2Fx Basic dXNlcjo= ", r.body)
	r = p.through("/a//b", "Host", "3000-"+id+".wrenn.test")
	assert.Equal(t, "3000-"+id+".wrenn.test /a//b  ", r.body)
	assert.Equal(t, http.StatusNotFound, p.through("/init", "Host", "49983-"+id+".x").code)
	assert.JSONEq(t, `{"sandboxId":"`+id+`","message":"The sandbox is running but port is not open","port":9,"code":502}`, p.through("/", "Host", "9-"+id+".x").body)

	require.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
	r = p.through("/health", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "49983")
	assert.Equal(t, http.StatusBadGateway, r.code)
	assert.JSONEq(t, `{"sandboxId":"`+id+`","message":"The sandbox was not found","code":502}`, r.body)
	r = p.through("/health", "Host", "49983-iunknown.x")
	assert.JSONEq(t, `{"sandboxId":"iunknown","message":"The sandbox was not found","code":502}`, r.body)
}

func TestRunEndsWhileAGuestStillStreams(t *testing.T) {
	begun := make(chan struct{})
	a := newStandIn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-r.Context().Done()
	}))
	p := startPlane(t, []agentclient.Config{a.config("one")})
	id := p.create(nil).SandboxID
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+p.proxy, nil)
	require.NoError(t, err)
	req.Host = "80-" + id + ".x"
	res, err := p.client.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	<-begun
	begin := time.Now()
	p.stop()
	assert.Less(t, time.Since(begin), wait)
	_, err = io.ReadAll(res.Body)
	assert.Error(t, err, "the stream is cut, not ended")
	assert.Equal(t, []string{id}, a.ids(), "the sandbox lives on")
}

func TestRunRefusesABadConfig(t *testing.T) {
	good := func() Config {
		return Config{
			APIListen: "127.0.0.1:0", ProxyListen: "127.0.0.1:0", Database: filepath.Join(t.TempDir(), "cp.db"), Secret: bytes.Repeat([]byte{7}, 32),
			Agents: []agentclient.Config{{Name: "a", URL: "http://127.0.0.1:1", Token: "t"}}, Logger: slog.New(slog.DiscardHandler),
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for want, spoil := range map[string]func(*Config){
		"logger":              func(c *Config) { c.Logger = nil },
		"database":            func(c *Config) { c.Database = "" },
		"31 bytes":            func(c *Config) { c.Secret = c.Secret[1:] },
		"at least one agent":  func(c *Config) { c.Agents = nil },
		"two agents":          func(c *Config) { c.Agents = append(c.Agents, c.Agents[0]) },
		"http://host:port":    func(c *Config) { c.Agents[0].URL = "x" },
		"API key must be":     func(c *Config) { c.BootstrapKey = "secret" },
		"make store":          func(c *Config) { c.Database = "/nonexistent/cp.db" },
		"listen for the API":  func(c *Config) { c.APIListen = taken.Addr().String() },
		"listen for the sand": func(c *Config) { c.ProxyListen = taken.Addr().String() },
	} {
		cfg := good()
		spoil(&cfg)
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		assert.ErrorContains(t, Run(ctx, cfg), want)
		cancel()
	}
}

func TestTheDefaultsAreTheOnesThatSDKsArePointedAt(t *testing.T) {
	cfg := Config{Database: "x", Secret: make([]byte, 32), Agents: []agentclient.Config{{Name: "a"}}, Logger: slog.New(slog.DiscardHandler)}
	require.NoError(t, cfg.complete())
	assert.Equal(t, "127.0.0.1:3000", cfg.APIListen)
	assert.Equal(t, "127.0.0.1:3002", cfg.ProxyListen)
	assert.Equal(t, DefaultReconcileInterval, cfg.ReconcileInterval)
}

// endAtReady keeps what a program prints and ends it when it says that it is ready.
type endAtReady struct {
	mu   sync.Mutex
	text bytes.Buffer
	end  func()
}

func (e *endAtReady) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if bytes.Contains(p, []byte("control plane ready")) {
		e.end()
	}
	return e.text.Write(p)
}

func TestTheCommandLine(t *testing.T) {
	a := newStandIn(t, http.NotFoundHandler())
	database := filepath.Join(t.TempDir(), "cp.db")
	run := func(ctx context.Context, args ...string) (string, error) {
		cmd := Command()
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		out := &endAtReady{end: cancel}
		cmd.SetOut(out)
		cmd.SetErr(out)
		cmd.SetArgs(args)
		err := cmd.ExecuteContext(ctx)
		out.mu.Lock()
		defer out.mu.Unlock()
		return out.text.String(), err
	}
	key, err := run(t.Context(), "new-key", "laptop", "--database", database)
	require.NoError(t, err)
	st, err := store.Open(t.Context(), database)
	require.NoError(t, err)
	name, err := st.CheckKey(t.Context(), strings.TrimSpace(key))
	require.NoError(t, err)
	assert.Equal(t, "laptop", name)
	require.NoError(t, st.Close())

	// Settings come from the environment, and flags win over it.
	t.Setenv("WRENN_CP_DATABASE", database)
	t.Setenv("WRENN_CP_SECRET", strings.Repeat("07", 32))
	t.Setenv("WRENN_CP_AGENTS", "one="+agentToken+"@"+a.url)
	t.Setenv("WRENN_CP_PROXY_LISTEN", "nonsense")
	out, err := run(t.Context(), "--api-listen", "127.0.0.1:0", "--proxy-listen", "127.0.0.1:0")
	require.NoError(t, err, out)
	assert.Contains(t, out, "control plane ready")

	t.Setenv("WRENN_CP_RECONCILE", "soon")
	_, err = run(t.Context())
	require.ErrorContains(t, err, "WRENN_CP_RECONCILE")
	t.Setenv("WRENN_CP_RECONCILE", "1s")
	_, err = run(t.Context(), "--secret", "xyz")
	require.ErrorContains(t, err, "--secret")
	_, err = run(t.Context(), "--agents", "http://127.0.0.1:1")
	require.ErrorContains(t, err, "--agents")
}
