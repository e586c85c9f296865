package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestS05_PauseAndResume(t *testing.T) {
	noEnvironment(t)
	a := newAPI(t, map[string]string{
		"POST /sandboxes/abc/pause":      ``,
		"POST /v2/sandboxes/abc/connect": `{"sandboxID":"abc","wrenn":{"bootPath":"restored","totalMs":30.5,"stages":[{"name":"load","ms":20}]}}`,
		"POST /v2/sandboxes/ran/connect": `{"sandboxID":"ran"}`,
	})
	a.Config.Handler = timing(a.Config.Handler)
	cli := func(args ...string) (string, string, error) {
		return run(t, append([]string{"--api-url", a.URL, "--api-key", "k"}, args...)...)
	}
	out, errOut, err := cli("pause", "abc")
	require.NoError(t, err)
	assert.Empty(t, out)
	assert.Regexp(t, `freeze +1\.5 ms\n +total +30\.0 ms\n`, errOut)
	out, _, err = cli("pause", "abc", "--files-only", "--json")
	require.NoError(t, err)
	assert.JSONEq(t, `{"sandboxID":"abc","phases":[{"name":"freeze","ms":1.5},{"name":"total","ms":30}]}`, out)
	_, errOut, err = cli("resume", "abc", "--timeout", "1h")
	require.NoError(t, err)
	assert.Regexp(t, `load +20\.0 ms\n +total +30\.5 ms +\(restored\)`, errOut)
	_, errOut, err = cli("resume", "ran", "--files-only")
	require.NoError(t, err)
	assert.Contains(t, errOut, "running already")
	out, _, err = cli("resume", "abc", "--json")
	require.NoError(t, err)
	assert.Contains(t, out, `"bootPath": "restored"`)
	assert.Equal(t, []string{
		`POST /sandboxes/abc/pause k {"memory":true}`, `POST /sandboxes/abc/pause k {"memory":false}`, `POST /v2/sandboxes/abc/connect k {"timeout":3600}`,
		`POST /v2/sandboxes/ran/connect k {"memory":false,"timeout":300}`, `POST /v2/sandboxes/abc/connect k {"timeout":300}`,
	}, a.asked)
	for _, wrong := range [][]string{{"pause"}, {"pause", "none"}, {"resume"}, {"resume", "none"}} {
		_, _, err = cli(wrong...)
		require.Error(t, err)
	}
}

// timing adds the times of phases to each answer.
func timing(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server-Timing", "freeze;dur=1.5, total;dur=30")
		next.ServeHTTP(w, r)
	})
}

func TestS05_CreateAsksForALifecycle(t *testing.T) {
	noEnvironment(t)
	a := newAPI(t, map[string]string{"POST /v2/sandboxes": `{"sandboxID":"abc"}`})
	create := func(args ...string) error {
		_, _, err := run(t, append([]string{"--api-url", a.URL, "--api-key", "k", "create"}, args...)...)
		return err
	}
	require.NoError(t, create("--auto-pause", "--auto-resume", "--snapshot", "mine"))
	require.NoError(t, create("--auto-pause", "--files-only"))
	assert.Equal(t, []string{
		`POST /v2/sandboxes k {"templateID":"mine","timeout":300,"autoPause":true,"autoResume":{"enabled":true}}`,
		`POST /v2/sandboxes k {"templateID":"base","timeout":300,"autoPause":true,"autoPauseMemory":false}`,
	}, a.asked)
	require.ErrorContains(t, create("--files-only"), "--auto-pause")
	require.ErrorContains(t, create("--auto-pause", "--files-only", "--auto-resume"), "exclude each other")
	require.Error(t, create("--snapshot", "mine", "--template", "base"))
	assert.Len(t, a.asked, 2)
}

func TestS09_SnapshotsAndForks(t *testing.T) {
	noEnvironment(t)
	const mine = `{"snapshotID":"mine:default","names":["mine:default"],"wrenn":{"sandboxID":"abc","templateID":"base","cpuCount":2,"memoryMB":512,"sizeBytes":1048577,"createdAt":"2026-01-02T03:04:05Z"}}`
	a := newAPI(t, map[string]string{
		"POST /sandboxes/abc/snapshots": mine, "GET /snapshots": "[" + mine + "]", "DELETE /templates/mine": ``,
		"POST /sandboxes/abc/fork": `[{"sandbox":{"sandboxID":"one"}},{"error":{"code":503,"message":"no free slot"}},{"sandbox":{"sandboxID":"two"}}]`,
	})
	a.Config.Handler = timing(a.Config.Handler)
	cli := func(args ...string) (string, string, error) {
		return run(t, append([]string{"--api-url", a.URL, "--api-key", "k"}, args...)...)
	}
	out, errOut, err := cli("snapshot", "create", "abc", "--name", "mine")
	require.NoError(t, err)
	assert.Equal(t, "mine:default\n", out)
	assert.Contains(t, errOut, "freeze")
	out, _, err = cli("snapshot", "create", "abc", "--json")
	require.NoError(t, err)
	assert.Contains(t, out, `"snapshotID": "mine:default"`)
	out, _, err = cli("snapshot", "list", "--sandbox", "abc")
	require.NoError(t, err)
	assert.Regexp(t, `mine:default +abc +base +2 +512 MiB +2 MiB +2026-`, out)
	out, _, err = cli("snapshot", "ls", "--json")
	require.NoError(t, err)
	assert.JSONEq(t, "["+mine[:len(mine)-2]+`,"diskSizeMB":0}}]`, out)
	_, _, err = cli("snapshot", "delete", "mine", "none")
	require.ErrorContains(t, err, "delete none: ")
	assert.NotContains(t, err.Error(), "mine")
	assert.Equal(t, []string{
		`POST /sandboxes/abc/snapshots k {"name":"mine"}`, `POST /sandboxes/abc/snapshots k {}`, "GET /snapshots k", "GET /snapshots k",
		"DELETE /templates/mine k", "DELETE /templates/none k",
	}, a.asked)

	a.asked = nil
	out, errOut, err = cli("fork", "abc", "--count", "3", "--timeout", "1m")
	require.ErrorContains(t, err, "copy 2: no free slot")
	assert.Equal(t, "one\ntwo\n", out)
	assert.Contains(t, errOut, "freeze")
	out, _, err = cli("fork", "abc", "--json")
	require.Error(t, err)
	var reply timed
	require.NoError(t, json.Unmarshal([]byte(out), &reply))
	assert.Len(t, reply.Forks, 3)
	assert.Equal(t, []string{`POST /sandboxes/abc/fork k {"count":3,"timeout":60}`, `POST /sandboxes/abc/fork k {"count":1,"timeout":300}`}, a.asked)
}

func TestListShowsPausedSandboxes(t *testing.T) {
	noEnvironment(t)
	a := newAPI(t, map[string]string{"GET /v2/sandboxes": `[{"sandboxID":"abc","templateID":"base","state":"paused","endAt":"2020-01-01T00:00:00Z"}]`})
	out, _, err := run(t, "--api-url", a.URL, "--api-key", "k", "list")
	require.NoError(t, err)
	assert.Regexp(t, `abc +base +paused .* -\n`, out)
}

// One second would not be a life for a sandbox that is resumed.
func TestAttachLeavesARunningLifeAsItIsAndGivesAPausedOneTheDefault(t *testing.T) {
	noEnvironment(t)
	for state, want := range map[string]string{"running": `{"timeout":1}`, "paused": `{}`} {
		var asked string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				body := make([]byte, 100)
				n, _ := r.Body.Read(body)
				asked = string(body[:n])
			}
			_, _ = w.Write([]byte(`{"sandboxID":"abc","state":"` + state + `"}`))
		}))
		o := options{apiURL: server.URL, sandboxURL: server.URL, apiKey: "k"}
		_, err := o.attach(t.Context(), "abc")
		require.NoError(t, err)
		assert.Equal(t, want, asked, state)
		server.Close()
	}
}
