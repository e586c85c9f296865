package envd

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	pb "wrenn/proto/gen/envd/process"
)

func (r *running) post(route, token, body string) *http.Response {
	r.t.Helper()
	req, err := http.NewRequestWithContext(within(r.t), http.MethodPost, r.base+route, strings.NewReader(body))
	require.NoError(r.t, err)
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	res, err := r.http.Do(req)
	require.NoError(r.t, err)
	require.NoError(r.t, res.Body.Close())
	return res
}

func lines(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(t, err)
	return strings.Count(string(data), "\n")
}

// TestS05_FreezeStopsProcessesAndCutsStreams: whoever reads is told by a reset, the process and what its
// terminal showed stay.
func TestS05_FreezeStopsProcessesAndCutsStreams(t *testing.T) {
	d := start(t, nil)
	path := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	s, pid := d.started(ctx, &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", `echo shown; while :; do echo x >>"$0"; sleep 0.01; done`, path}},
		Pty:     &pb.PTY{Size: &pb.PTY_Size{Cols: 80, Rows: 24}},
	})
	require.True(t, s.Receive())
	assert.Contains(t, string(s.Msg().GetEvent().GetData().GetPty()), "shown")
	require.Eventually(t, func() bool { return lines(t, path) > 3 }, deadline, time.Millisecond)
	assert.Equal(t, http.StatusNoContent, d.post("/freeze", "", "").StatusCode)
	before := lines(t, path)
	time.Sleep(100 * time.Millisecond)
	assert.Equal(t, before, lines(t, path), "it runs on")
	assert.False(t, s.Receive())
	require.Error(t, s.Err(), "the stream was not cut")
	assert.Equal(t, http.StatusNoContent, d.post("/init", "", `{"wrennResumed":true,"timestamp":"`+time.Now().Format(time.RFC3339Nano)+`"}`).StatusCode)
	assert.Equal(t, before, lines(t, path), "the start of a guest's own life lets processes go on")
	assert.Equal(t, http.StatusNoContent, d.post("/unfreeze", "", "").StatusCode)
	require.Eventually(t, func() bool { return lines(t, path) > before }, deadline, time.Millisecond)
	again, err := d.procs.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: byPID(pid)}))
	require.NoError(t, err)
	require.True(t, again.Receive(), "%v", again.Err())
	require.True(t, again.Receive(), "%v", again.Err())
	assert.Contains(t, string(again.Msg().GetEvent().GetData().GetPty()), "shown", "the terminal's history is lost")
	require.NoError(t, again.Close())
	_, err = d.procs.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: byPID(pid), Signal: pb.Signal_SIGNAL_SIGKILL}))
	require.NoError(t, err)
}

func TestS05_AStaleConnectionIsCutByAResume(t *testing.T) {
	d := start(t, nil)
	s, _ := d.started(within(t), shell("sleep 100"))
	assert.Equal(t, http.StatusNoContent, d.post("/init", "", `{"wrennResumed":true}`).StatusCode)
	assert.False(t, s.Receive())
	require.Error(t, s.Err())
	d.post("/init", "", `{}`)
}

// TestS05_ALateTimestampThawsNothing: a clock that was set by it may be off by as long as it was on its way.
func TestS05_ALateTimestampThawsNothing(t *testing.T) {
	d := start(t, nil)
	for late, want := range map[time.Duration]string{2 * thawSlack: "", 0: "1"} {
		r, w := io.Pipe()
		go func() {
			_, _ = io.WriteString(w, `{"wrennResumed":true,`) // a failure shows in the request
			time.Sleep(late)
			_, _ = io.WriteString(w, `"wrennThaw":true}`)
			_ = w.Close()
		}()
		req, err := http.NewRequestWithContext(within(t), http.MethodPost, d.base+"/init", r)
		require.NoError(t, err)
		res, err := d.http.Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, http.StatusNoContent, res.StatusCode)
		assert.Equal(t, want, res.Header.Get("X-Wrenn-Thawed"), "%v late", late)
	}
}

func TestS05_ControlRoutesNeedTheTokenAndCheckWhatTheyGet(t *testing.T) {
	d := start(t, nil)
	require.Equal(t, http.StatusNoContent, d.post("/init", "", `{"accessToken":"secret"}`).StatusCode)
	for _, route := range []string{"/freeze", "/unfreeze"} {
		assert.Equal(t, http.StatusUnauthorized, d.post(route, "", "").StatusCode, route)
		assert.Equal(t, http.StatusUnauthorized, d.post(route, "wrong", "").StatusCode, route)
		assert.Equal(t, http.StatusNoContent, d.post(route, "secret", "").StatusCode, route)
	}
	assert.Equal(t, http.StatusUnauthorized, d.post("/init", "", `{"wrennResumed":true,"accessToken":"other"}`).StatusCode)
	// The token of a snapshot is replaced by that of the sandbox that was created from it.
	assert.Equal(t, http.StatusNoContent, d.post("/init", "secret", `{"wrennResumed":true,"accessToken":"other"}`).StatusCode)
	assert.Equal(t, http.StatusUnauthorized, d.post("/unfreeze", "secret", "").StatusCode)
	for _, body := range []string{
		`{"wrennHostname":"a b"}`, `{"wrennHostname":"` + strings.Repeat("a", 64) + `"}`, `{"wrennMachineID":"xyz"}`,
		`{"wrennMachineID":"../../../../etc/passwd/aaaaaaaaaa"}`, `{"wrennEntropy":"` + strings.Repeat("AAAA", 200) + `"}`, `{"wrennEntropy":"%"}`,
	} {
		assert.Equal(t, http.StatusBadRequest, d.post("/init", "other", body).StatusCode, body)
	}
}

// BenchmarkFreeze is what a pause asks of the daemon, from the connect to the answer, where its code and the kernel's are
// not emulated: with a process to stop, by a control group where this machine has one to give, and nothing to write.
func BenchmarkFreeze(b *testing.B) {
	group := filepath.Join("/sys/fs/cgroup", "wrenn-bench")
	by := "group"
	if os.Mkdir(group, 0o755) != nil {
		group, by = "", "signals"
	} else if _, err := os.Stat(filepath.Join(group, "cgroup.freeze")); err != nil {
		require.NoError(b, os.Remove(group))
		group, by = "", "signals"
	} else {
		b.Cleanup(func() { assert.NoError(b, os.Remove(group)) })
	}
	d := start(b, func(c *Config) { c.Cgroups = group })
	_, _ = d.started(b.Context(), shell("while :; do sleep 0.01; done"))
	b.Run("by="+by, func(b *testing.B) {
		for b.Loop() {
			d.http.CloseIdleConnections()
			require.Equal(b, http.StatusNoContent, d.post("/freeze", "", "").StatusCode)
			b.StopTimer()
			require.Equal(b, http.StatusNoContent, d.post("/unfreeze", "", "").StatusCode)
			b.StartTimer()
		}
	})
}

// TestAFreezeIsRehearsedAfterAResume, once what was frozen goes on and not before.
func TestAFreezeIsRehearsedAfterAResume(t *testing.T) {
	d := newDaemon(Config{Log: slog.New(slog.DiscardHandler)})
	defer d.close()
	rehearsals := 0
	d.rehearsal = func() { rehearsals++ }
	tell := func(body string) {
		w := httptest.NewRecorder()
		d.postInit(w, httptest.NewRequest(http.MethodPost, "/init", strings.NewReader(body)))
		require.Equal(t, http.StatusNoContent, w.Code, "%s", w.Body)
	}
	tell(`{"wrennResumed":true}`)
	assert.Zero(t, rehearsals)
	tell(`{"wrennResumed":true,"wrennThaw":true}`)
	assert.Equal(t, 1, rehearsals)
}

func TestARehearsalLeavesNoTrace(t *testing.T) {
	var log syncBuffer
	d := newDaemon(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	defer d.close()
	d.rehearse()
	assert.Empty(t, log.String())
}
