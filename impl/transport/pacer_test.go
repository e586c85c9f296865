package transport

import (
	"context"
	"io"
	"math"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pacedPair is a connection that p watches, and its client, who reads all.
func pacedPair(t *testing.T, l net.Listener) *served {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	s, ok := (<-accepted).(*served)
	require.True(t, ok)
	t.Cleanup(func() { _ = s.Close() })
	_, err = c.Write([]byte("k")) // a key, if it is a terminal
	require.NoError(t, err)
	_, err = s.Read(make([]byte, 1))
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, c) }()
	return s
}

func paces(t *testing.T, s *served) uint64 {
	t.Helper()
	info := tcpInfo(s.TCPConn)
	require.NotNil(t, info)
	return info.Max_pacing_rate
}

func send(t *testing.T, n int, conns ...*served) {
	t.Helper()
	for _, s := range conns {
		before := tcpInfo(s.TCPConn).Bytes_acked
		_, err := s.Write(make([]byte, n))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return tcpInfo(s.TCPConn).Bytes_acked-before >= uint64(n) }, time.Minute, time.Millisecond)
	}
}

// TestT07_BulkIsHeldBackForATerminalInUse sees what the kernel was told of real connections.
func TestT07_BulkIsHeldBackForATerminalInUse(t *testing.T) {
	p := NewPacer()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer inner.Close()
	l := Listen(inner, p)
	terminal, one, two, idle := pacedPair(t, l), pacedPair(t, l), pacedPair(t, l), pacedPair(t, l)
	require.Len(t, p.clients, 1)
	var c *client
	for _, c = range p.clients {
	}
	now := time.Now()
	look := func() {
		send(t, 1<<20, one, two)
		now = now.Add(pace)
		p.look(now)
	}
	held := func() { c.budget = budget{rate: 4e6, capacity: 5e6, arrives: 4e6} }
	look()
	held()
	look()
	const free = math.MaxUint64
	assert.EqualValues(t, uint64(free), paces(t, one), "there is no terminal")

	terminal.marked.Store(true)
	now = now.Add(2 * time.Second)
	look()
	held()
	look()
	rate := c.budget.rate
	require.NotZero(t, rate)
	for _, s := range []*served{one, two} {
		assert.InEpsilon(t, rate/2, float64(paces(t, s)), 0.2)
	}
	assert.EqualValues(t, uint64(free), paces(t, terminal))

	one.marked.Store(true) // a connection that carries a terminal from now on
	look()
	assert.Greater(t, paces(t, one), uint64(1<<31))
	one.marked.Store(false)

	require.NoError(t, idle.Close())
	assert.Len(t, c.conns, 3, "a closed connection is forgotten")
	now = now.Add(2 * inUse)
	c.asked = now.Add(time.Hour) // it would see the key that came a moment ago
	look()
	assert.Greater(t, paces(t, two), uint64(1<<31), "nobody types any more")
	for _, s := range []*served{terminal, one, two} {
		require.NoError(t, s.Close())
	}
	assert.Empty(t, p.clients)

	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { p.Run(ctx); close(over) }()
	cancel()
	<-over
}

// TestT07_WhoWantsLittleLeavesTheOthersTheirs: the level lets all together send the rate.
func TestT07_WhoWantsLittleLeavesTheOthersTheirs(t *testing.T) {
	for _, test := range []struct {
		level, rate float64
		sends       []float64
		want        float64
	}{
		{0, 4e6, []float64{1e6, 1e6, 1e6, 1e6}, 1e6}, // unknown yet
		{1e6, 4e6, []float64{1e6, 1e6, 1e6, 1e6}, 1e6},
		{1e6, 4e6, []float64{1e6, 1e6, 0.2e6, 0.2e6}, 1.7e6},
		{1e6, 4e6, []float64{1e5, 1e5}, 1.5e5},
		{1e6, 1e5, []float64{1e6, 1e6, 1e6, 1e6}, levelFloor},
	} {
		c := &client{conns: map[*served]*meter{}}
		var bulk []*served
		for _, rate := range test.sends {
			s := &served{}
			bulk = append(bulk, s)
			c.conns[s] = &meter{level: test.level, rate: rate}
		}
		assert.InEpsilon(t, test.want, c.level(bulk, test.rate), 0.01, "%+v", test)
	}
}
