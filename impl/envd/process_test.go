package envd

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	pb "wrenn/proto/gen/envd/process"
)

// started starts m and returns its stream after the start event, and its pid.
func (r *running) started(ctx context.Context, m *pb.StartRequest, header ...string) (*connect.ServerStreamForClient[pb.StartResponse], uint32) {
	r.t.Helper()
	req := connect.NewRequest(m)
	for _, h := range header {
		k, v, _ := strings.Cut(h, ": ")
		req.Header().Set(k, v)
	}
	s, err := r.procs.Start(ctx, req)
	require.NoError(r.t, err)
	require.True(r.t, s.Receive(), "%v", s.Err())
	pid := s.Msg().GetEvent().GetStart().GetPid()
	require.NotZero(r.t, pid)
	return s, pid
}

func TestG02_QuietReattachAnswersAtOnce(t *testing.T) {
	d := start(t, nil)
	ctx, leave := context.WithCancel(within(t))
	s, pid := d.started(ctx, shell("read x; echo $x"))
	leave() // the client goes, the process stays
	_ = s.Close()
	again, err := d.procs.Connect(within(t), connect.NewRequest(&pb.ConnectRequest{Process: byPID(pid)}))
	require.NoError(t, err)
	require.True(t, again.Receive(), "%v", again.Err())
	assert.Equal(t, pid, again.Msg().GetEvent().GetStart().GetPid())
	_, err = d.procs.SendInput(within(t), connect.NewRequest(&pb.SendInputRequest{
		Process: byPID(pid), Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("here\n")}},
	}))
	require.NoError(t, err)
	require.True(t, again.Receive())
	assert.Equal(t, "here\n", string(again.Msg().GetEvent().GetData().GetStdout()))
	require.True(t, again.Receive())
	end := again.Msg().GetEvent().GetEnd()
	assert.True(t, proto.Equal(&pb.ProcessEvent_EndEvent{Exited: true, Status: "exit status 0"}, end), "%v", end)
	assert.False(t, again.Receive())
	require.NoError(t, again.Err())
	require.NoError(t, again.Close())
}

func TestG02_KeepalivesOnQuietStreams(t *testing.T) {
	d := start(t, nil)
	s, _ := d.started(within(t), shell("sleep 300"), "Keepalive-Ping-Interval: 1")
	for range 2 {
		require.True(t, s.Receive(), "%v", s.Err())
		assert.NotNil(t, s.Msg().GetEvent().GetKeepalive())
	}
	require.NoError(t, s.Close())
}

func TestG02_TimeoutOfZeroIsNone(t *testing.T) {
	d := start(t, nil)
	message := `{"process":{"cmd":"/bin/echo","args":["hello"]}}`
	body := string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
	r := d.do(http.MethodPost, "/process.Process/Start", body,
		"Content-Type: application/connect+json", "Connect-Timeout-Ms: 0", "Keepalive-Ping-Interval: 0")
	assert.Contains(t, r.body, `"stdout":"aGVsbG8K"`)
	assert.Contains(t, r.body, `"exited":true`)
}

func TestG02_DeadlineOfTheRequestEndsTheProcess(t *testing.T) {
	d := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	s, pid := d.started(ctx, shell("sleep 300"))
	if s.Receive() { // the daemon's clock was ahead of the client's, and the end came through
		assert.Equal(t, "signal: killed", s.Msg().GetEvent().GetEnd().GetError())
	} else {
		assert.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(s.Err()))
	}
	_ = s.Close()
	require.Eventually(t, func() bool {
		l, err := d.procs.List(within(t), connect.NewRequest(&pb.ListRequest{}))
		require.NoError(t, err)
		return len(l.Msg.GetProcesses()) == 0
	}, deadline, 10*time.Millisecond)
	late, err := d.procs.Connect(within(t), connect.NewRequest(&pb.ConnectRequest{Process: byPID(pid)}))
	require.NoError(t, err)
	require.True(t, late.Receive())
	require.True(t, late.Receive())
	assert.Equal(t, "signal: killed", late.Msg().GetEvent().GetEnd().GetError())
	require.NoError(t, late.Close())
}

func TestG02_ListTellsWhatWasAskedFor(t *testing.T) {
	d := start(t, nil)
	m := shell("sleep 300")
	m.Tag = proto.String("a tag")
	m.Process.Envs = map[string]string{"A": "b"}
	s, pid := d.started(within(t), m)
	l, err := d.procs.List(within(t), connect.NewRequest(&pb.ListRequest{}))
	require.NoError(t, err)
	require.Len(t, l.Msg.GetProcesses(), 1)
	want := &pb.ProcessInfo{Config: m.Process, Pid: pid, Tag: m.Tag}
	assert.True(t, proto.Equal(want, l.Msg.GetProcesses()[0]), "%v", l.Msg.GetProcesses()[0])
	tag := &pb.ProcessSelector{Selector: &pb.ProcessSelector_Tag{Tag: "a tag"}}
	_, err = d.procs.SendSignal(within(t), connect.NewRequest(&pb.SendSignalRequest{Process: tag, Signal: pb.Signal_SIGNAL_SIGTERM}))
	require.NoError(t, err)
	require.True(t, s.Receive())
	assert.Equal(t, "signal: terminated", s.Msg().GetEvent().GetEnd().GetStatus())
	require.NoError(t, s.Close())
	_, err = d.procs.SendSignal(within(t), connect.NewRequest(&pb.SendSignalRequest{Process: tag, Signal: pb.Signal_SIGNAL_SIGKILL}))
	requireCode(t, connect.CodeNotFound, err, "process")
}

func TestG02_StreamInput(t *testing.T) {
	d := start(t, nil)
	s, pid := d.started(within(t), shell("cat"))
	in := d.procs.StreamInput(within(t))
	require.NoError(t, in.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(pid)}}}))
	want := ""
	for i := range 500 {
		line := fmt.Sprintf("%d\n", i)
		want += line
		require.NoError(t, in.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{
			Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte(line)}},
		}}}))
	}
	require.NoError(t, in.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Keepalive{}}))
	_, err := in.CloseAndReceive()
	require.NoError(t, err)
	_, err = d.procs.CloseStdin(within(t), connect.NewRequest(&pb.CloseStdinRequest{Process: byPID(pid)}))
	require.NoError(t, err)
	got := ""
	for s.Receive() {
		got += string(s.Msg().GetEvent().GetData().GetStdout())
	}
	require.NoError(t, s.Err())
	require.NoError(t, s.Close())
	assert.Equal(t, want, got)
}

func TestV03_RequestsThatAreRefused(t *testing.T) {
	d := start(t, nil)
	long := strings.Repeat("x", 128<<10)
	for name, c := range map[string]struct {
		change func(*pb.StartRequest)
		code   connect.Code
		want   string
	}{
		"no command":      {func(m *pb.StartRequest) { m.Process.Cmd = "" }, connect.CodeInvalidArgument, "process.cmd"},
		"no process":      {func(m *pb.StartRequest) { m.Process = nil }, connect.CodeInvalidArgument, "process.cmd"},
		"missing command": {func(m *pb.StartRequest) { m.Process.Cmd = "no-such" }, connect.CodeInvalidArgument, "no-such"},
		"NUL":             {func(m *pb.StartRequest) { m.Process.Args = []string{"a", "b\x00"} }, connect.CodeInvalidArgument, "process.args[1]"},
		"long argument":   {func(m *pb.StartRequest) { m.Process.Args = []string{long} }, connect.CodeInvalidArgument, "process.args[0]"},
		"many arguments":  {func(m *pb.StartRequest) { m.Process.Args = make([]string, 8193) }, connect.CodeInvalidArgument, "process.args"},
		"too much in all": {func(m *pb.StartRequest) { m.Process.Args = slicesOf(long[:len(long)-1], 40) }, connect.CodeInvalidArgument, "too long"},
		"variable name":   {func(m *pb.StartRequest) { m.Process.Envs = map[string]string{"A=": "x"} }, connect.CodeInvalidArgument, "process.envs"},
		"variable":        {func(m *pb.StartRequest) { m.Process.Envs = map[string]string{"A": long} }, connect.CodeInvalidArgument, `process.envs["A"]`},
		"tag":             {func(m *pb.StartRequest) { m.Tag = proto.String(long) }, connect.CodeInvalidArgument, "tag"},
		"directory":       {func(m *pb.StartRequest) { m.Process.Cwd = proto.String("/no/such") }, connect.CodeInvalidArgument, "/no/such"},
		"size":            {func(m *pb.StartRequest) { m.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: 70000, Rows: 1}} }, connect.CodeInvalidArgument, "pty.size"},
		"half a size":     {func(m *pb.StartRequest) { m.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: 70}} }, connect.CodeInvalidArgument, "pty.size"},
	} {
		t.Run(name, func(t *testing.T) {
			m := shell("true")
			c.change(m)
			s, err := d.procs.Start(within(t), connect.NewRequest(m))
			require.NoError(t, err)
			assert.False(t, s.Receive())
			requireCode(t, c.code, s.Err(), c.want)
			_ = s.Close()
		})
	}
	req := connect.NewRequest(shell("true"))
	req.Header().Set("Authorization", "Basic bm9ib2R5LWF0LWFsbDo=")
	s, err := d.procs.Start(within(t), req)
	require.NoError(t, err)
	assert.False(t, s.Receive())
	requireCode(t, connect.CodeUnauthenticated, s.Err(), "nobody-at-all")
	_ = s.Close()
	_, err = d.procs.Update(within(t), connect.NewRequest(&pb.UpdateRequest{}))
	requireCode(t, connect.CodeInvalidArgument, err, "process")
	_, err = d.procs.SendSignal(within(t), connect.NewRequest(&pb.SendSignalRequest{Process: byPID(1), Signal: 1}))
	requireCode(t, connect.CodeInvalidArgument, err, "signal")
	_, err = d.procs.SendInput(within(t), connect.NewRequest(&pb.SendInputRequest{Process: byPID(1)}))
	requireCode(t, connect.CodeNotFound, err, "pid 1")
}

func slicesOf(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

// TestT05_StalledConnectionIsCutOff stalls a client's TCP connection and not only its queue: the
// program, the other reader and the daemon must be rid of it, and it must be told.
func TestT05_StalledConnectionIsCutOff(t *testing.T) {
	d := start(t, func(c *Config) { c.ReadPatience = 200 * time.Millisecond })
	const size = 64 << 20 // more than queue and socket buffers hold
	reader, pid := d.started(within(t), shell(fmt.Sprintf("read x; head -c %d /dev/zero", size)))
	conn, err := net.Dial("tcp", d.addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(64<<10))
	body := fmt.Sprintf(`{"process":{"pid":%d}}`, pid)
	_, err = fmt.Fprintf(conn, "POST /process.Process/Connect HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s%s",
		5+len(body), append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(len(body)))...), body)
	require.NoError(t, err)
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, nil)
	require.NoError(t, err)
	_, err = d.procs.SendInput(within(t), connect.NewRequest(&pb.SendInputRequest{
		Process: byPID(pid), Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("\n")}},
	}))
	require.NoError(t, err)
	got := 0
	for reader.Receive() {
		got += len(reader.Msg().GetEvent().GetData().GetStdout())
	}
	require.NoError(t, reader.Err())
	require.NoError(t, reader.Close())
	assert.Equal(t, size, got)
	// Now it reads again, early enough to be told.
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(deadline)))
	rest, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Contains(t, string(rest[max(0, len(rest)-500):]), `"code":"resource_exhausted"`)
}

func TestT05_ConnectionThatStaysStalledIsClosed(t *testing.T) {
	d := start(t, func(c *Config) { c.ReadPatience = 100 * time.Millisecond })
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	stalled, _ := d.started(ctx, shell("head -c 64000000 /dev/zero; sleep 300"))
	serving := func() bool {
		stacks := make([]byte, 1<<20)
		return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "process.relay")
	}
	require.True(t, serving())
	require.Eventually(t, func() bool { return !serving() }, deadline, 50*time.Millisecond,
		"the daemon still waits for a client that has stalled")
	n := 0
	for stalled.Receive() {
		n += len(stalled.Msg().GetEvent().GetData().GetStdout())
	}
	require.Error(t, stalled.Err())
	assert.Less(t, n, 64000000)
	_ = stalled.Close()
}
