package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/bench/h2c"
	"wrenn/bench/load"
	"wrenn/impl/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 20 * time.Second

// free is an address that nothing listens on at the moment.
func free(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// play runs a part until the test ends and waits until it accepts.
func play(t *testing.T, addr string, part func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- part(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", addr)
		return err == nil && conn.Close() == nil
	}, wait, time.Millisecond)
}

func TestARelayJoinsBothWays(t *testing.T) {
	to, at := free(t), free(t)
	play(t, to, func(ctx context.Context) error { return serve(ctx, to, echoTCP) })
	play(t, at, func(ctx context.Context) error { return serveRelay(ctx, at, to) })
	conn, err := net.Dial("tcp", at)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(wait)))
	for _, text := range []string{"a", "bc"} {
		_, err = io.WriteString(conn, text)
		require.NoError(t, err)
		got := make([]byte, len(text))
		_, err = io.ReadFull(conn, got)
		require.NoError(t, err)
		assert.Equal(t, text, string(got))
	}
}

// newGuest serves what makes traffic. A request whose body is not read does not notice that its client is gone.
func newGuest(t *testing.T) *httptest.Server {
	ctx, cancel := context.WithCancel(context.Background())
	guest := httptest.NewServer(routes(ctx))
	t.Cleanup(guest.Close)
	t.Cleanup(cancel)
	return guest
}

// hops starts the one-connection design before a guest and returns its door, and how many connections that has
// made.
func hops(t *testing.T) (door load.HTTP2, dials *int) {
	guest := newGuest(t)
	_, port, err := net.SplitHostPort(guest.Listener.Addr().String())
	require.NoError(t, err)
	host, edge := free(t), free(t)
	play(t, host, func(ctx context.Context) error { return serveHost(ctx, host, "127.0.0.1") })
	play(t, edge, func(ctx context.Context) error { return serveEdge(ctx, edge, host) })
	dials = new(int)
	rt := h2c.NewTransport(func(ctx context.Context, network, addr string) (net.Conn, error) {
		*dials++
		return new(net.Dialer).DialContext(ctx, network, addr)
	})
	t.Cleanup(rt.CloseIdleConnections)
	return load.HTTP2{HTTP1: load.HTTP1{Transport: rt, URL: &url.URL{Scheme: "http", Host: edge}, Host: port + "-box"}}, dials
}

func get(t *testing.T, door load.Door, path string) (int, error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://guest"+path, nil)
	require.NoError(t, err)
	res, err := door.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(res.Body)
	return len(body), errors.Join(err, res.Body.Close())
}

func TestTheOneConnectionDesignCarriesEverythingOnOne(t *testing.T) {
	door, dials := hops(t)
	n, err := get(t, door, "/poll")
	require.NoError(t, err)
	assert.Equal(t, pollReply, n)
	n, err = get(t, door, "/bytes/100000")
	require.NoError(t, err)
	assert.Equal(t, 100000, n)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	conn, err := door.WebSocket(ctx, "/ws")
	require.NoError(t, err)
	frame := make([]byte, messageSize)
	_, err = io.ReadFull(conn, frame)
	require.NoError(t, err)
	assert.Equal(t, byte(0x82), frame[0], "a whole binary message, as the WebSocket protocol writes it")
	require.NoError(t, conn.Close())
	assert.Equal(t, 1, *dials)
}

func TestH02_AnUnreadUploadBlocksWhatSharesItsConnection(t *testing.T) {
	door, _ := hops(t)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := load.Start(ctx, door, load.Unread)
	require.NoError(t, err)
	// The windows are full once nothing more is taken.
	taken := int64(-1)
	require.Eventually(t, func() bool {
		before := taken
		taken = l.Bytes()
		return taken == before
	}, wait, 300*time.Millisecond, "the upload is read")
	post := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		up, end := io.Pipe()
		go func() {
			_, _ = io.WriteString(end, "x")
			_ = end.Close()
		}()
		defer up.Close()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://guest/upload", up)
		require.NoError(t, err)
		res, err := door.RoundTrip(req)
		if err != nil {
			return err
		}
		return res.Body.Close()
	}
	require.ErrorIs(t, post(time.Second), context.DeadlineExceeded)
	cancel()
	l.Stop()
	require.NoError(t, post(wait))
}

func TestEveryKindOfLoadRunsAndEnds(t *testing.T) {
	guest := newGuest(t)
	at, err := url.Parse(guest.URL)
	require.NoError(t, err)
	for _, kind := range append(load.Kinds, load.Flood) {
		rt := transport.NewProxyTransport()
		l, err := load.Start(t.Context(), load.HTTP1{Transport: rt, URL: at}, kind)
		require.NoError(t, err, kind)
		if kind != load.None {
			require.Eventually(t, func() bool { return l.Bytes() > 0 }, wait, time.Millisecond, kind)
		}
		l.Stop()
		require.NoError(t, l.Err(), kind)
		rt.CloseIdleConnections()
	}
	_, err = load.Start(t.Context(), load.HTTP1{Transport: transport.NewProxyTransport(), URL: &url.URL{Scheme: "http", Host: free(t)}}, load.Downloads)
	require.Error(t, err, "a door that leads nowhere")
}

// TestALoadOfAnotherProcess is planned by its first line, told of by a tally for each further one, and over with the last.
func TestALoadOfAnotherProcess(t *testing.T) {
	guest := newGuest(t)
	at, err := url.Parse(guest.URL)
	require.NoError(t, err)
	in, plan := io.Pipe()
	answers, out := io.Pipe()
	ended := make(chan error, 1)
	rt := transport.NewProxyTransport()
	defer rt.CloseIdleConnections()
	go func() { ended <- load.Serve(t.Context(), rt, in, out) }()
	require.NoError(t, json.NewEncoder(plan).Encode(load.HTTP1{URL: at}.Plan(load.All)))
	var begun, later load.Tally
	tallies := json.NewDecoder(answers)
	require.NoError(t, tallies.Decode(&begun))
	require.Eventually(t, func() bool {
		_, err := io.WriteString(plan, "\n")
		return err == nil && tallies.Decode(&later) == nil && later.Bytes > begun.Bytes && later.Calls > begun.Calls
	}, wait, time.Millisecond)
	assert.Empty(t, later.Error)
	require.NoError(t, plan.Close())
	require.NoError(t, <-ended)
	require.Error(t, load.Serve(t.Context(), rt, strings.NewReader("no plan\n"), io.Discard))
	require.Error(t, load.Serve(t.Context(), rt, strings.NewReader(""), io.Discard))
}

// TestLargeFramesComeOneByOne: sockets that opened in the same moment once sent 256 MB in one, now and then.
func TestLargeFramesComeOneByOne(t *testing.T) {
	const n = int64(largeEvery / largeSpread)
	at := map[time.Duration]bool{}
	for i := range n {
		at[firstLarge(7+i)] = true
	}
	assert.Len(t, at, int(n))
	for first := range at {
		assert.Less(t, first, largeEvery)
	}
}
