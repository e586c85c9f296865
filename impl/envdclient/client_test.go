package envdclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func TestInitWhenReadyWaitsForTheDaemon(t *testing.T) {
	port := freePort(t)
	c := newClient(t, port, nil)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	require.Error(t, c.Health(ctx))
	short, cancelShort := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancelShort()
	_, err := c.InitWhenReady(short, InitRequest{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	done := make(chan InitResult, 1)
	go func() {
		res, err := c.InitWhenReady(ctx, InitRequest{})
		assert.NoError(t, err)
		done <- res
	}()
	time.Sleep(100 * time.Millisecond)
	startDaemon(t, port)
	res := <-done
	require.NoError(t, c.Health(ctx))
	assert.Equal(t, "0.6.4", res.Version)
	assert.Equal(t, 1500*time.Millisecond, res.Boot.Init)
	assert.Positive(t, res.Boot.Envd)
	assert.GreaterOrEqual(t, res.Boot.Now, res.Boot.Envd)
}

func TestG04_TokenAndHeadersGoWithEveryRequest(t *testing.T) {
	port := freePort(t)
	startDaemon(t, port)
	token := "tok"
	open := newClient(t, port, nil)
	_, err := open.InitWhenReady(t.Context(), InitRequest{AccessToken: &token})
	require.NoError(t, err)
	var seen []string
	with := newClient(t, port, func(c *Config) {
		c.AccessToken = token
		c.Headers = http.Header{"E2b-Sandbox-Id": {"abc"}}
		next := c.HTTPClient.Transport
		c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			seen = append(seen, r.Header.Get("E2b-Sandbox-Id"))
			return next.RoundTrip(r)
		})}
		t.Cleanup(next.(*http.Transport).CloseIdleConnections)
	})
	_, err = with.Stat(t.Context(), "", "/")
	require.NoError(t, err)
	f, err := with.ReadFile(t.Context(), "", "/etc/passwd")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = with.Exec(t.Context(), ExecRequest{Cmd: "true"})
	require.NoError(t, err)
	assert.Equal(t, []string{"abc", "abc", "abc"}, seen)

	_, err = open.Stat(t.Context(), "", "/")
	assert.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err))
	_, err = open.ReadFile(t.Context(), "", "/etc/passwd")
	var answered *Error
	require.ErrorAs(t, err, &answered)
	assert.Equal(t, 401, answered.Status)
	_, err = open.InitWhenReady(t.Context(), InitRequest{})
	require.ErrorAs(t, err, &answered, "a refusal ends the waiting")
}

// countedConn counts what is written, each a packet on its way.
type countedConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// TestT07_AKeyByACallIsOneWrite: what is longer has packets enough, and arrives as well.
func TestT07_AKeyByACallIsOneWrite(t *testing.T) {
	port := freePort(t)
	startDaemon(t, port)
	var writes atomic.Int64
	c := newClient(t, port, func(c *Config) {
		c.HTTPClient.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return countedConn{conn, &writes}, err
		}
	})
	_, err := c.InitWhenReady(t.Context(), InitRequest{})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	s, err := c.PTY(ctx, PTYRequest{Cmd: "sh", Args: []string{"-c", "stty raw -echo; echo ready; cat"}})
	require.NoError(t, err)
	defer s.Close()
	expect := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		_, err := io.ReadFull(s, got)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	expect("ready\n")
	for _, c := range []struct {
		name  string
		input string
		least int64
		most  int64
	}{
		{"a key", "a", 1, 1},
		{"a line", strings.Repeat("b", shortCall/2), 1, 1},
		{"a page", strings.Repeat("c", 3*shortCall), 2, 4},
	} {
		writes.Store(0)
		_, err := io.WriteString(s, c.input)
		require.NoError(t, err)
		n := writes.Load()
		assert.GreaterOrEqual(t, n, c.least, c.name)
		assert.LessOrEqual(t, n, c.most, c.name)
		expect(c.input)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestNewRefusesWhatCannotWork(t *testing.T) {
	for _, c := range []Config{
		{BaseURL: "localhost:49983", HTTPClient: &http.Client{}},
		{BaseURL: "http://localhost"},
		{BaseURL: "http://localhost", HTTPClient: &http.Client{Timeout: time.Second}},
	} {
		_, err := New(c)
		require.ErrorContains(t, err, "make envd client")
	}
}

func TestBootTimes(t *testing.T) {
	assert.Equal(t, BootTimes{Init: 1500 * time.Millisecond, Envd: 2 * time.Second, Now: 3 * time.Second}, bootTimesOf("init=1.5;envd=2;now=3"))
	assert.Equal(t, BootTimes{Now: time.Second}, bootTimesOf("x=1;envd=-1;init=NaN;now=1;"))
	assert.Zero(t, bootTimesOf(""))
}

func TestExec(t *testing.T) {
	dir := t.TempDir()
	c := ready(t, InitRequest{Workdir: &dir, Env: map[string]string{"G": "global"}})
	var out, errs bytes.Buffer
	exit, err := c.Exec(t.Context(), ExecRequest{
		Cmd: "sh", Args: []string{"-c", "cat; pwd; echo $G $R >&2; exit 3"}, Env: map[string]string{"R": "request"},
		Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errs,
	})
	require.NoError(t, err)
	assert.Equal(t, Exit{Code: 3, Status: "exit status 3"}, exit)
	assert.Equal(t, "in\n"+dir+"\n", out.String())
	assert.Equal(t, "global request\n", errs.String())
	exit, err = c.Exec(t.Context(), ExecRequest{Cmd: "cat", Cwd: "/"})
	require.NoError(t, err, "without input it is empty")
	assert.Zero(t, exit.Code)
	_, err = c.Exec(t.Context(), ExecRequest{Cmd: "no-such-program"})
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
}

func TestExecMovesLargeInputAndOutput(t *testing.T) {
	c := ready(t, InitRequest{})
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	var out bytes.Buffer
	_, err := c.Exec(t.Context(), ExecRequest{Cmd: "cat", Stdin: bytes.NewReader(in), Stdout: &out})
	require.NoError(t, err)
	assert.True(t, bytes.Equal(in, out.Bytes()))
}

// failing is a writer that takes a little.
type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, errors.New("enough")
	}
	return len(p), nil
}

func TestExecKillsWhatItGivesUp(t *testing.T) {
	dir := t.TempDir()
	c := ready(t, InitRequest{Workdir: &dir})
	gone := func() {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(dir, "pid"))
		require.NoError(t, err)
		pid := strings.TrimSpace(string(raw))
		_, err = strconv.Atoi(pid)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			_, err := os.Stat("/proc/" + pid)
			return errors.Is(err, os.ErrNotExist)
		}, deadline, 5*time.Millisecond)
	}
	script := []string{"-c", "echo $$ > pid; while :; do echo x; sleep 0.01; done"}
	_, err := c.Exec(t.Context(), ExecRequest{Cmd: "sh", Args: script, Stdout: &failing{n: 2}})
	require.ErrorContains(t, err, "enough")
	gone()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = c.Exec(ctx, ExecRequest{Cmd: "sh", Args: script})
	require.ErrorContains(t, err, "deadline")
	gone()
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(500*time.Millisecond, cancel)
	_, err = c.Exec(ctx, ExecRequest{Cmd: "sh", Args: script})
	require.Error(t, err)
	gone()
}

func TestPTY(t *testing.T) {
	c := ready(t, InitRequest{})
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	s, err := c.PTY(ctx, PTYRequest{Cmd: "sh", Env: map[string]string{"TERM": "xterm", "PS1": "$ "}, Size: Size{Cols: 90, Rows: 20}})
	require.NoError(t, err)
	say := func(s *Session, line string) {
		_, err := io.WriteString(s, line+"\n")
		require.NoError(t, err)
	}
	shows := func(s *Session, want string) {
		t.Helper()
		var got strings.Builder
		buf := make([]byte, 100)
		for !strings.Contains(got.String(), want) {
			n, err := s.Read(buf)
			require.NoError(t, err, "%q", got.String())
			got.Write(buf[:n])
		}
	}
	say(s, "stty size")
	shows(s, "20 90")
	require.NoError(t, s.Resize(ctx, Size{Cols: 50, Rows: 10}))
	say(s, "stty size")
	shows(s, "10 50")
	require.NoError(t, s.Close())
	_, err = s.Wait()
	require.Error(t, err)

	again, err := c.AttachPTY(ctx, s.PID)
	require.NoError(t, err)
	shows(again, "10 50")
	say(again, "echo $((6*7)); exit 5")
	shows(again, "42")
	_, err = io.Copy(io.Discard, again)
	require.NoError(t, err)
	exit, err := again.Wait()
	require.NoError(t, err)
	assert.Equal(t, 5, exit.Code)
	require.NoError(t, again.Close())
	require.Error(t, again.Kill(ctx))
	_, err = c.AttachPTY(ctx, 1<<30)
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	c := ready(t, InitRequest{Workdir: &dir})
	for _, size := range []int64{7, -1, 0} {
		content := "content"[:max(0, min(7, 7*abs(size)))]
		require.NoError(t, c.WriteFile(t.Context(), "", "a/b & c", strings.NewReader(content), size))
		r, err := c.ReadFile(t.Context(), "", "a/b & c")
		require.NoError(t, err)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		assert.Equal(t, content, string(got))
	}
	e, err := c.Stat(t.Context(), "", "a")
	require.NoError(t, err)
	assert.True(t, e.Mode.IsDir())
	assert.Equal(t, filepath.Join(dir, "a"), e.Path)
	l, err := c.List(t.Context(), "", ".", 2)
	require.NoError(t, err)
	require.Len(t, l, 2)
	assert.Equal(t, "b & c", l[1].Name)
	var answered *Error
	_, err = c.ReadFile(t.Context(), "", "none")
	require.ErrorAs(t, err, &answered)
	assert.Equal(t, 404, answered.Status)
	require.ErrorAs(t, c.WriteFile(t.Context(), "", "/proc/none", strings.NewReader("x"), 1), &answered)
}

func abs(n int64) int64 { return max(n, -n) }

func TestFilesOfAnotherUser(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	c := ready(t, InitRequest{Workdir: &dir})
	require.NoError(t, c.WriteFile(t.Context(), "nobody", "f", strings.NewReader("x"), 1))
	e, err := c.Stat(t.Context(), "nobody", "f")
	require.NoError(t, err)
	assert.Equal(t, "nobody", e.Owner)
	var out bytes.Buffer
	_, err = c.Exec(t.Context(), ExecRequest{Cmd: "id", Args: []string{"-un"}, User: "nobody", Cwd: "/", Stdout: &out})
	require.NoError(t, err)
	assert.Equal(t, "nobody\n", out.String())
}

func TestPTYCloseWhileReading(t *testing.T) {
	c := ready(t, InitRequest{})
	for range 20 {
		s, err := c.PTY(t.Context(), PTYRequest{Cmd: "sh", Args: []string{"-c", "while :; do echo x; sleep 0.001; done"}})
		require.NoError(t, err)
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, s)
			read <- err
		}()
		time.Sleep(5 * time.Millisecond)
		_ = s.Close()
		select {
		case err := <-read:
			require.Error(t, err)
		case <-time.After(deadline):
			require.Fail(t, "the read goes on")
		}
		_, err = s.Wait()
		require.Error(t, err)
		require.NoError(t, c.Kill(t.Context(), s.PID), "the program goes on")
	}
}
