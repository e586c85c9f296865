package envd

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	pb "wrenn/proto/gen/envd/process"
)

func TestHealthInitEnvsMetrics(t *testing.T) {
	d := start(t, func(c *Config) { c.InitSeconds = "1.250000" })
	r := d.do(http.MethodGet, "/health", "")
	assert.Equal(t, 204, r.status)
	assert.Empty(t, r.body)

	r = d.do(http.MethodPost, "/init", `{"envVars":{"A":"1"},"lifecycleID":"unknown fields are no fault"}`)
	require.Equal(t, 204, r.status, r.body)
	assert.Equal(t, Version, r.header.Get("X-Envd-Version"))
	assert.Regexp(t, `^init=1\.250000;envd=\d+\.\d{6};now=\d+\.\d{6}$`, r.header.Get("X-Wrenn-Boot"))
	assert.JSONEq(t, `{"A":"1"}`, d.do(http.MethodGet, "/envs", "").body)

	var m metrics
	require.NoError(t, json.Unmarshal([]byte(d.do(http.MethodGet, "/metrics", "").body), &m))
	assert.Positive(t, m.CPUCount)
	assert.True(t, 0 <= m.CPUUsedPct && m.CPUUsedPct <= 100, "%v", m.CPUUsedPct)
	assert.True(t, 0 < m.MemUsed && m.MemUsed < m.MemTotal)
	assert.True(t, 0 < m.DiskUsed && m.DiskUsed <= m.DiskTotal)
	assert.InDelta(t, time.Now().Unix(), m.Timestamp, 60)

	d.do(http.MethodGet, "/nothing", "").requireError(t, 404, "/nothing")
}

func TestG04_EverythingButHealthNeedsTheToken(t *testing.T) {
	d := start(t, nil)
	require.Equal(t, 204, d.do(http.MethodPost, "/init", `{"accessToken":"s3cret-token"}`).status)
	assert.Equal(t, 204, d.do(http.MethodGet, "/health", "").status)
	locked := []string{
		"GET /metrics", "GET /envs", "GET /files?path=/etc/hostname", "POST /files?path=/tmp/x", "POST /files/compose", "GET /nothing",
		"POST /process.Process/List", "POST /process.Process/Start", "POST /filesystem.Filesystem/Stat", "PUT /health/../metrics",
	}
	for _, route := range locked {
		method, path, _ := strings.Cut(route, " ")
		for _, token := range []string{"", "s3cret-toke", "s3cret-token "} {
			r := d.do(method, path, "{}", "Content-Type: application/json", "X-Access-Token: "+token+"x")
			r.requireError(t, 401, "token")
		}
		d.do(method, path, "{}", "Content-Type: application/json").requireError(t, 401, "token")
		r := d.do(method, path, "{}", "Content-Type: application/json", "X-Access-Token: s3cret-token")
		assert.NotEqual(t, 401, r.status, route)
	}
	assert.NotContains(t, d.log.String(), "s3cret")
}

func TestG04_InitWhileATokenIsSet(t *testing.T) {
	d := start(t, nil)
	init := func(body string, header ...string) reply { return d.do(http.MethodPost, "/init", body, header...) }
	require.Equal(t, 204, init(`{"accessToken":"one"}`).status, "the first caller sets it")
	init(`{}`).requireError(t, 401, "token")
	init(`{"accessToken":"two"}`).requireError(t, 401, "token")
	init(`{"accessToken":""}`).requireError(t, 401, "token")
	assert.Equal(t, 204, init(`{"accessToken":"one","envVars":{"B":"2"}}`).status, "who knows it may repeat it")
	assert.Equal(t, 204, init(`{"accessToken":"two"}`, "X-Access-Token: one").status, "or change it")
	init(`{}`, "X-Access-Token: one").requireError(t, 401, "token")
	assert.Equal(t, 204, init(`{"accessToken":""}`, "X-Access-Token: two").status, "or clear it")
	assert.Equal(t, 200, d.do(http.MethodGet, "/envs", "").status)
}

func TestV03_InitIsBounded(t *testing.T) {
	d := start(t, nil)
	big := strings.Repeat("x", 128<<10)
	for body, want := range map[string]string{
		`{`:                               "read body",
		`{"envVars":{"":"x"}}`:            "envVars",
		`{"envVars":{"A=B":"x"}}`:         "envVars",
		`{"envVars":{"A":"\u0000"}}`:      `envVars["A"]`,
		`{"envVars":{"A":"` + big + `"}}`: `envVars["A"]`,
		`{"envVars":"A"}`:                 "envVars",
		`{"accessToken":"` + big + `"}`:   "accessToken",
		`{"defaultUser":"no-such-user"}`:  "defaultUser",
		`{"defaultWorkdir":"~other"}`:     "defaultWorkdir",
		`{"timestamp":"yesterday"}`:       "parsing time",
	} {
		d.do(http.MethodPost, "/init", body).requireError(t, 400, want)
	}
	d.do(http.MethodPost, "/init", `{"a":"`+strings.Repeat("x", maxInit)+`"}`).requireError(t, 413, "too large")
}

func TestInitOfAnOlderMomentChangesNothing(t *testing.T) {
	d := start(t, nil)
	at := func(s int, value string) string {
		return fmt.Sprintf(`{"timestamp":"2026-01-01T00:00:%02dZ","envVars":{"A":%q}}`, s, value)
	}
	for _, body := range []string{at(5, "five"), at(4, "four"), at(5, "again")} {
		require.Equal(t, 204, d.do(http.MethodPost, "/init", body).status)
	}
	assert.JSONEq(t, `{"A":"five"}`, d.do(http.MethodGet, "/envs", "").body)
}

func TestInitReachesProcessesAndPaths(t *testing.T) {
	d := start(t, nil)
	dir := t.TempDir()
	body, err := json.Marshal(map[string]any{"defaultWorkdir": dir, "envVars": map[string]string{"A": "global", "B": "global"}})
	require.NoError(t, err)
	require.Equal(t, 204, d.do(http.MethodPost, "/init", string(body)).status)
	m := shell("echo $A $B; pwd > out")
	m.Process.Envs = map[string]string{"B": "request"}
	stream, err := d.procs.Start(within(t), connect.NewRequest(m))
	require.NoError(t, err)
	out := ""
	for stream.Receive() {
		out += string(stream.Msg().GetEvent().GetData().GetStdout())
	}
	require.NoError(t, stream.Err())
	require.NoError(t, stream.Close())
	assert.Equal(t, "global request\n", out)
	assert.Equal(t, dir+"\n", d.do(http.MethodGet, "/files?path=out", "").body)
}

func TestCORS(t *testing.T) {
	d := start(t, nil)
	r := d.do(http.MethodOptions, "/process.Process/Start", "", "Origin: https://a.example",
		"Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,x-access-token")
	assert.Equal(t, 204, r.status)
	assert.Equal(t, "*", r.header.Get("Access-Control-Allow-Origin"))
	assert.Equal(t, "authorization,x-access-token", r.header.Get("Access-Control-Allow-Headers"))
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
		assert.Contains(t, r.header.Get("Access-Control-Allow-Methods"), m)
	}
	assert.Equal(t, "*", d.do(http.MethodGet, "/health", "", "Origin: https://a.example").header.Get("Access-Control-Allow-Origin"))
}

func TestBothHTTPVersionsAndBothCodecs(t *testing.T) {
	d := start(t, nil)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	two := &http.Transport{Protocols: p}
	defer two.CloseIdleConnections()
	res, err := (&http.Client{Transport: two}).Get(d.base + "/health")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	assert.Equal(t, 2, res.ProtoMajor)
	res, err = d.http.Get(d.base + "/health")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	assert.Equal(t, 1, res.ProtoMajor)
	r := d.do(http.MethodPost, "/process.Process/List", "{}", "Content-Type: application/json", "Connect-Protocol-Version: 1")
	assert.JSONEq(t, `{}`, r.body)
	_, err = d.procs.List(within(t), connect.NewRequest(&pb.ListRequest{}))
	require.NoError(t, err)
}

func TestClockMetersAndMeminfo(t *testing.T) {
	got := parseMeminfo([]byte("MemTotal:  2048 kB\nHugePages_Total:   0\nnonsense\nX: y kB\n"))
	assert.Equal(t, map[string]uint64{"MemTotal": 2 << 20, "HugePages_Total": 0}, got)
	m := newCPUMeter()
	m.busy, m.total = 0, 0
	pct, err := m.percent()
	require.NoError(t, err)
	assert.True(t, 0 < pct && pct < 100, "since boot: %v", pct)
	assert.InDelta(t, bootSeconds(), bootSeconds(), 10)
}

func TestClockIsSetOnlyWhereItIsFarOff(t *testing.T) {
	for drift, want := range map[time.Duration]bool{
		0: false, -50 * time.Millisecond: false, -51 * time.Millisecond: true, -time.Hour: true,
		5 * time.Second: false, 5001 * time.Millisecond: true,
	} {
		assert.Equal(t, want, isWrong(drift), "%v", drift)
	}
}

func TestRunSaysWhyItCannotListen(t *testing.T) {
	l := httptest.NewServer(http.NotFoundHandler())
	defer l.Close()
	err := Run(t.Context(), Config{Addr: l.Listener.Addr().String(), Log: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "listen on")
	require.ErrorContains(t, err, "in use")
}

func TestNothingIsLeftOpen(t *testing.T) {
	count := func() int {
		f, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(f)
	}
	once := func() {
		t.Run("one", func(t *testing.T) {
			d := start(t, nil)
			stream, err := d.procs.Start(within(t), connect.NewRequest(shell("sleep 300")))
			require.NoError(t, err)
			require.True(t, stream.Receive())
			d.do(http.MethodGet, "/files?path=/etc/passwd", "")
			require.NoError(t, stream.Close())
		})
	}
	once()
	before := count()
	once()
	once()
	assert.Eventually(t, func() bool { return count() <= before }, deadline, 10*time.Millisecond)
}
