package controlplane

import (
	"log/slog"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
)

// BenchmarkCreateAndKill measures what the control plane adds to a create and a kill: REST, validation, store
// and two hops on loopback. The stand-in agent itself takes no time.
func BenchmarkCreateAndKill(b *testing.B) {
	a := newStandIn(b, http.NotFoundHandler())
	p := startPlane(b, []agentclient.Config{a.config("one")}, func(c *Config) { c.Logger = slog.New(slog.DiscardHandler) })
	for b.Loop() {
		id := p.create(nil).SandboxID
		require.Equal(b, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
	}
}

// BenchmarkProxy measures one small GET through both hops of the sandbox proxy.
func BenchmarkProxy(b *testing.B) {
	a := newStandIn(b, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	p := startPlane(b, []agentclient.Config{a.config("one")}, func(c *Config) { c.Logger = slog.New(slog.DiscardHandler) })
	id := p.create(nil).SandboxID
	for b.Loop() {
		require.Equal(b, http.StatusOK, p.through("/", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "49983").code)
	}
}
