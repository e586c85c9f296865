package apiclient

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestU01_PauseResumeSnapshotAndForkAskAsTheContractSays(t *testing.T) {
	var asked string
	answers := map[string]string{
		"/v2/sandboxes/abc/connect":   `{"sandboxID":"abc","wrenn":{"bootPath":"restored","totalMs":3,"stages":[]}}`,
		"/sandboxes/abc/snapshots":    `{"snapshotID":"mine:default","names":["mine:default"],"wrenn":{"sandboxID":"abc","createdAt":"2026-01-02T03:04:05Z","sizeBytes":7}}`,
		"/sandboxes/abc/fork":         `[{"sandbox":{"sandboxID":"def"}},{"error":{"code":503,"message":"no free slot"}}]`,
		"/templates/mine:default":     ``,
		"/templates/team%2F..%2Fmine": ``,
		"/sandboxes/abc/pause":        ``,
	}
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		asked = r.Method + " " + r.URL.EscapedPath() + " " + body.String()
		answer, ok := answers[r.URL.EscapedPath()]
		assert.True(t, ok, asked)
		w.Header().Set("Server-Timing", "freeze;dur=1.5, odd, bad;dur=x,memory;dur=20;desc=x, total;dur=30")
		_, _ = w.Write([]byte(answer))
	})
	phases := []Stage{{"freeze", 1.5}, {"total", 30}}

	got, err := c.Pause(t.Context(), "abc", false)
	require.NoError(t, err)
	assert.Equal(t, `POST /sandboxes/abc/pause {"memory":true}`, asked)
	assert.Equal(t, phases, got)
	_, err = c.Pause(t.Context(), "abc", true)
	require.NoError(t, err)
	assert.Equal(t, `POST /sandboxes/abc/pause {"memory":false}`, asked)

	s, err := c.Resume(t.Context(), "abc", 60, true)
	require.NoError(t, err)
	assert.Equal(t, `POST /v2/sandboxes/abc/connect {"memory":false,"timeout":60}`, asked)
	assert.Equal(t, "restored", s.Wrenn.BootPath)
	_, err = c.Connect(t.Context(), "abc", 0)
	require.NoError(t, err)
	assert.Equal(t, `POST /v2/sandboxes/abc/connect {}`, asked)

	sn, got, err := c.CreateSnapshot(t.Context(), "abc", "mine")
	require.NoError(t, err)
	assert.Equal(t, `POST /sandboxes/abc/snapshots {"name":"mine"}`, asked)
	assert.Equal(t, phases, got)
	assert.Equal(t, Snapshot{
		SnapshotID: "mine:default", Names: []string{"mine:default"},
		Wrenn: SnapshotDetail{SandboxID: "abc", CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), SizeBytes: 7},
	}, sn)
	_, _, err = c.CreateSnapshot(t.Context(), "abc", "")
	require.NoError(t, err)
	assert.Equal(t, `POST /sandboxes/abc/snapshots {}`, asked)
	require.NoError(t, c.DeleteSnapshot(t.Context(), "mine:default"))
	assert.Contains(t, asked, "DELETE ")
	require.NoError(t, c.DeleteSnapshot(t.Context(), "team/../mine"))

	forks, got, err := c.Fork(t.Context(), "abc", 2, 60)
	require.NoError(t, err)
	assert.Equal(t, `POST /sandboxes/abc/fork {"count":2,"timeout":60}`, asked)
	assert.Equal(t, phases, got)
	require.Len(t, forks, 2)
	assert.Equal(t, "def", forks[0].Sandbox.SandboxID)
	assert.Equal(t, &Error{Code: 503, Message: "no free slot"}, forks[1].Error)
}

func TestU01_ListSnapshotsFollowsPages(t *testing.T) {
	pages := map[string]string{"": `[{"snapshotID":"a:default"}]`, "next": `[{"snapshotID":"b:default"}]`}
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "abc", r.URL.Query().Get("sandboxID"))
		token := r.URL.Query().Get("nextToken")
		if token == "" {
			w.Header().Set("X-Next-Token", "next")
		}
		_, _ = w.Write([]byte(pages[token]))
	})
	all, err := c.ListSnapshots(t.Context(), "abc")
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Equal(t, "b:default", all[1].SnapshotID)
}
