package envd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/envd/stream"
	pb "wrenn/proto/gen/envd/process"
	"wrenn/proto/gen/envd/process/processconnect"
)

// TestT04_StreamsOutliveTheServersClocks has all of them run out while a program says nothing, and while input
// is sent by one long request.
func TestT04_StreamsOutliveTheServersClocks(t *testing.T) {
	const tick = 150 * time.Millisecond
	d := start(t, func(c *Config) {
		c.tune = func(s *http.Server) { s.ReadHeaderTimeout, s.IdleTimeout = tick, tick }
		c.ReadPatience = tick
	})
	s, pid := d.started(within(t), shell("read x; echo got-$x"))
	in := d.procs.StreamInput(within(t))
	require.NoError(t, in.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(pid)}}}))
	time.Sleep(10 * tick)
	require.NoError(t, in.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{
		Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("late\n")}},
	}}}))
	require.True(t, s.Receive(), "%v", s.Err())
	assert.Equal(t, "got-late\n", string(s.Msg().GetEvent().GetData().GetStdout()))
	require.True(t, s.Receive(), "%v", s.Err())
	assert.NotNil(t, s.Msg().GetEvent().GetEnd())
	_, err := in.CloseAndReceive()
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

func TestT08_ConnectionWindowHoldsAllStreams(t *testing.T) {
	h2 := newServer(nil, slog.New(slog.DiscardHandler)).HTTP2
	assert.GreaterOrEqual(t, h2.MaxReceiveBufferPerConnection, h2.MaxConcurrentStreams*h2.MaxReceiveBufferPerStream)
}

// TestT08_UnreadUploadsDoNotStopAKeystroke fills the windows of all streams but two of one HTTP/2 connection with
// input that no program reads, and sends a keystroke beside them.
func TestT08_UnreadUploadsDoNotStopAKeystroke(t *testing.T) {
	d := start(t, nil)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protocols, MaxConnsPerHost: 1}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	procs := processconnect.NewProcessClient(client, d.base)
	echo, pid := d.started(within(t), shell("exec cat"))

	ctx, cancel := context.WithCancel(within(t))
	ended := make(chan struct{})
	const uploads = maxStreams - 2
	for range uploads {
		_, deaf := d.started(ctx, shell("sleep 300"))
		go func() {
			defer func() { ended <- struct{}{} }()
			in := &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(deaf)}}}
			data := &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{
				Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: bytes.Repeat([]byte("x"), 256<<10)}},
			}}}
			stream := procs.StreamInput(ctx)
			if stream.Send(in) == nil {
				for stream.Send(data) == nil {
				}
			}
			_, _ = stream.CloseAndReceive()
		}()
	}
	time.Sleep(500 * time.Millisecond) // the windows fill up
	for range 20 {
		begun := time.Now()
		_, err := procs.SendInput(within(t), connect.NewRequest(&pb.SendInputRequest{
			Process: byPID(pid), Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("k\n")}},
		}))
		require.NoError(t, err, "a keystroke beside %d unread uploads", uploads)
		require.True(t, echo.Receive())
		require.Equal(t, "k\n", string(echo.Msg().GetEvent().GetData().GetStdout()))
		if took := time.Since(begun); took > time.Second {
			t.Logf("one took %v", took)
		}
	}
	cancel()
	for range uploads {
		<-ended
	}
	require.NoError(t, echo.Close())
}

// TestRoomIsKnownByHTTP1Alone: by HTTP/2 a reply waits for a window, of which the socket says nothing.
func TestRoomIsKnownByHTTP1Alone(t *testing.T) {
	srv := newServer(stream.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		room := stream.RoomOf(r.Context())
		_, _ = fmt.Fprint(w, r.ProtoMajor, room != nil && room())
	})), slog.New(slog.DiscardHandler))
	(&connections{}).watch(srv)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	over := make(chan error, 1)
	go func() { over <- srv.Serve(l) }()
	defer func() { _ = srv.Close(); <-over }()
	for major, want := range map[int]string{1: "1 true", 2: "2 false"} {
		p := new(http.Protocols)
		p.SetHTTP1(major == 1)
		p.SetUnencryptedHTTP2(major == 2)
		tr := &http.Transport{Protocols: p}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String(), nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(req)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, want, string(body))
	}
}
