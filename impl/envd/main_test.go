package envd

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/proto/gen/envd/filesystem/filesystemconnect"
	pb "wrenn/proto/gen/envd/process"
	"wrenn/proto/gen/envd/process/processconnect"
)

// deadline is far beyond what anything here takes on an idle machine.
const deadline = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a daemon in this process and clients of it.
type running struct {
	t     testing.TB
	addr  string
	base  string
	http  *http.Client
	procs processconnect.ProcessClient
	tree  filesystemconnect.FilesystemClient
	log   *syncBuffer
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t testing.TB, change func(*Config)) *running {
	t.Helper()
	r := &running{t: t, log: &syncBuffer{}}
	ctx, cancel := context.WithCancel(t.Context())
	addr := make(chan net.Addr, 1)
	c := Config{
		Addr: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Listening: func(a net.Addr) { addr <- a },
	}
	if change != nil {
		change(&c)
	}
	over := make(chan error, 1)
	go func() { over <- Run(ctx, c) }()
	select {
	case a := <-addr:
		r.addr = a.String()
	case err := <-over:
		require.NoError(t, err)
	}
	r.base = "http://" + r.addr
	transport := &http.Transport{}
	r.http = &http.Client{Transport: transport}
	r.procs = processconnect.NewProcessClient(r.http, r.base)
	r.tree = filesystemconnect.NewFilesystemClient(r.http, r.base)
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-over:
			assert.NoError(t, err)
		case <-time.After(deadline):
			assert.Fail(t, "the daemon does not end")
		}
		transport.CloseIdleConnections()
	})
	return r
}

type reply struct {
	status int
	header http.Header
	body   string
}

// do makes a request; header is "Name: value" lines.
func (r *running) do(method, route, body string, header ...string) reply {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.base+route, strings.NewReader(body))
	require.NoError(r.t, err)
	for _, h := range header {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	res, err := r.http.Do(req)
	require.NoError(r.t, err)
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	require.NoError(r.t, err)
	return reply{res.StatusCode, res.Header, string(raw)}
}

func (r reply) requireError(t *testing.T, status int, contains string) {
	t.Helper()
	require.Equal(t, status, r.status, r.body)
	var body struct {
		Code    int
		Message string
	}
	require.NoError(t, json.Unmarshal([]byte(r.body), &body), r.body)
	assert.Equal(t, status, body.Code)
	assert.Contains(t, body.Message, contains)
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func shell(script string) *pb.StartRequest {
	return &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}}}
}

func byPID(pid uint32) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: pid}}
}

func requireCode(t *testing.T, code connect.Code, err error, contains string) {
	t.Helper()
	require.Error(t, err)
	assert.Equal(t, code, connect.CodeOf(err), "%v", err)
	assert.ErrorContains(t, err, contains)
}
