package qemu

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/firecracker/firecrackertest"
	"wrenn/impl/need"
	"wrenn/impl/netns/netnstest"
)

// patience is how long anything may take that is over in milliseconds on an idle machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	netnstest.Isolate() // TAPs, qdiscs and ifbs of these tests are nobody else's
	goleak.VerifyTestMain(m)
}

// liveMachine is a machine in this process, with the call interface of its API and its console in a file.
type liveMachine struct {
	*machine
	t       *testing.T
	console string
}

func newLiveMachine(t *testing.T) *liveMachine {
	t.Helper()
	console := filepath.Join(t.TempDir(), "console")
	out, err := os.OpenFile(console, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, out.Close()) })
	in, err := os.Open(os.DevNull)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, in.Close()) })
	cfg := Config{QEMU: "qemu-system-x86_64", Accel: "tcg", ID: "live", BodyLimit: defaultBodyLimit,
		Stdin: in, Stdout: out, sink: &logSink{out: os.Stderr}, level: new(slog.LevelVar)}
	m := newMachine(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	t.Cleanup(m.close)
	return &liveMachine{machine: m, t: t, console: console}
}

// call makes one call of the API and returns status and body.
func (m *liveMachine) call(method, path, body string) (int, string) {
	m.t.Helper()
	r := httptest.NewRequestWithContext(context.WithoutCancel(m.t.Context()), method, path, strings.NewReader(body))
	w := httptest.NewRecorder()
	m.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func (m *liveMachine) must(method, path, body string) {
	m.t.Helper()
	status, answer := m.call(method, path, body)
	require.Equal(m.t, 204, status, "%s %s %s: %s", method, path, body, answer)
}

func (m *liveMachine) refused(method, path, body, want string) {
	m.t.Helper()
	status, answer := m.call(method, path, body)
	assert.Equal(m.t, 400, status, "%s %s %s", method, path, body)
	var f struct {
		Message string `json:"fault_message"`
	}
	require.NoError(m.t, json.Unmarshal([]byte(answer), &f), answer)
	assert.Contains(m.t, f.Message, want)
}

// powerOn starts the built kernel; what the guest then does is no matter to most tests.
func (m *liveMachine) powerOn() {
	m.t.Helper()
	need.Program(m.t, "qemu-system-x86_64")
	m.must("PUT", "/boot-source", `{"kernel_image_path":"`+firecrackertest.Image(m.t, "vmlinux")+`"}`)
	m.must("PUT", "/actions", `{"action_type":"InstanceStart"}`)
}

func disk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk, with a comma=and more")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	return path
}
