package envdclient

import (
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func hostile(t *testing.T, handle http.HandlerFunc) *Client {
	t.Helper()
	guest := httptest.NewServer(handle)
	t.Cleanup(guest.Close)
	guest.Client().Transport.(*http.Transport).ExpectContinueTimeout = time.Second
	c, err := New(Config{BaseURL: guest.URL, HTTPClient: guest.Client(), AccessToken: "secret"})
	require.NoError(t, err)
	return c
}

// TestT03_AGuestCannotSendTheHostElsewhere: whoever is root in a guest can answer in its daemon's place.
func TestT03_AGuestCannotSendTheHostElsewhere(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s arrived with token %q", r.Method, r.URL, r.Header.Get("X-Access-Token"))
	}))
	t.Cleanup(elsewhere.Close)
	c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/latest/meta-data", http.StatusTemporaryRedirect)
	})
	token := "in the body"
	_, err := c.InitWhenReady(t.Context(), InitRequest{AccessToken: &token})
	require.Error(t, err)
	_, err = c.Exec(t.Context(), ExecRequest{Cmd: "x"})
	require.Error(t, err)
	_, err = c.ReadFile(t.Context(), "", "/x")
	require.Error(t, err)
}

func TestV03_AMessageOfAGuestIsBounded(t *testing.T) {
	c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/connect+proto")
		head := make([]byte, 5)
		binary.BigEndian.PutUint32(head[1:], 3<<30)
		_, _ = w.Write(head)
		for range 64 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	_, err := c.Exec(t.Context(), ExecRequest{Cmd: "x"})
	assert.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err), "%v", err)
}
