package apiclient

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newClient(t *testing.T, handle http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return New(server.URL, "key", server.Client().Transport)
}

func TestListFollowsPagesAndEncodesMetadataThrice(t *testing.T) {
	pages := map[string]string{"": `[{"sandboxID":"a"}]`, "next": `[{"sandboxID":"b"}]`}
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		inner, err := url.ParseQuery(r.URL.Query().Get("metadata"))
		assert.NoError(t, err)
		key, err := url.PathUnescape("k%20y")
		assert.NoError(t, err)
		assert.Equal(t, "v%261%2B", inner.Get(url.PathEscape(key)), "%v", inner)
		token := r.URL.Query().Get("nextToken")
		if token == "" {
			w.Header().Set("X-Next-Token", "next")
		}
		_, _ = w.Write([]byte(pages[token]))
	})
	all, err := c.List(t.Context(), map[string]string{"k y": "v&1+"})
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Equal(t, "b", all[1].SandboxID)
}

func TestRefusalsKeepCodeAndSentence(t *testing.T) {
	body := `{"code":503,"message":"no free slot"}`
	c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(body))
	})
	_, err := c.Create(t.Context(), CreateRequest{TemplateID: "base"})
	var refusal *Error
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, Error{Code: 503, Message: "no free slot"}, *refusal)
	assert.False(t, IsNotFound(err))
	body = "<html>a proxy in between</html>"
	require.ErrorContains(t, c.Kill(t.Context(), "x"), "a proxy in between")
}

func TestIDsCannotLeaveTheirPathSegment(t *testing.T) {
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/sandboxes/..%2Fx%3Fy", r.URL.EscapedPath())
		w.WriteHeader(http.StatusNotFound)
	})
	_, err := c.Get(t.Context(), "../x?y")
	assert.True(t, IsNotFound(err))
}

func TestTheKeyDoesNotFollowARedirect(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was followed") }))
	t.Cleanup(elsewhere.Close)
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	require.Error(t, c.Kill(t.Context(), "x"))
}

func TestLogsAreTheLastLinesInOrder(t *testing.T) {
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "backward", r.URL.Query().Get("direction"))
		_, _ = w.Write([]byte(`{"logs":[{"message":"third"},{"message":"second"}]}`))
	})
	lines, err := c.Logs(t.Context(), "x", 2)
	require.NoError(t, err)
	assert.Equal(t, []string{"second", "third"}, lines)
}

func TestSilenceNamesTheRemedy(t *testing.T) {
	server := httptest.NewServer(nil)
	c := New(server.URL, "key", server.Client().Transport)
	server.Close()
	_, err := c.Get(t.Context(), "x")
	require.ErrorContains(t, err, "wrenn up")
}
