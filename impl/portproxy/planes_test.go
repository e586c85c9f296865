package portproxy

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

// plane answers by its name .
type plane string

func (p plane) RoundTripBy(r *http.Request, _ transport.Way, _ *httptrace.ClientTrace) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Plane": {string(p)}}, Body: http.NoBody, Request: r}, nil
}

// TestT07_WholeFilesAreBulk: what goes ahead of others is the daemon's calls, not files of any size.
func TestT07_WholeFilesAreBulk(t *testing.T) {
	agent, err := url.Parse("http://agent.invalid")
	require.NoError(t, err)
	door := NewEdge(EdgeConfig{
		Bulk: plane("bulk"), Streams: plane("streams"), Logger: slog.New(slog.DiscardHandler),
		Lookup: func(context.Context, string) (AgentTarget, error) { return AgentTarget{URL: agent}, nil },
	})
	defer door.Close()
	for _, ask := range []struct{ port, path, plane string }{
		{"49983", "/process.Process/SendInput", "streams"},
		{"49983", "/filesystem.Filesystem/WatchDir", "streams"},
		{"49983", "/health", "streams"},
		{"49983", "/files?path=a", "bulk"},
		{"49983", "/files/compose", "streams"},
		{"8000", "/process.Process/SendInput", "bulk"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, ask.path, http.NoBody)
		r.Host = ask.port + "-abc123.example.com"
		w := httptest.NewRecorder()
		door.ServeHTTP(w, r)
		assert.Equal(t, ask.plane, w.Header().Get("Plane"), "%s %s: %d", ask.port, ask.path, w.Code)
	}
}
