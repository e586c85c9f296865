package nameserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// wait is for what takes milliseconds on an idle machine.
const wait = 20 * time.Second

// listen opens both kinds of socket at one loopback address.
func listen(t *testing.T) (net.PacketConn, net.Listener, netip.AddrPort) {
	t.Helper()
	for range 20 {
		streams, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		packets, err := net.ListenPacket("udp4", streams.Addr().String())
		if err == nil {
			return packets, streams, netip.MustParseAddrPort(streams.Addr().String())
		}
		streams.Close()
	}
	require.FailNow(t, "no port is free for both UDP and TCP")
	return nil, nil, netip.AddrPort{}
}

// upstream is a resolver that answers as it is told; nil is silence.
func upstream(t *testing.T, answer func(m dnsmessage.Message, network string) *dnsmessage.Message) netip.AddrPort {
	t.Helper()
	packets, streams, addr := listen(t)
	var running sync.WaitGroup
	handle := func(msg []byte, network string, send func([]byte)) {
		var m dnsmessage.Message
		if m.Unpack(msg) == nil {
			m.Response, m.Additionals = true, nil
			if out := answer(m, network); out != nil {
				send(packed(t, *out))
			}
		}
	}
	running.Go(func() {
		for buf := make([]byte, 4096); ; {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			handle(buf[:n], "udp", func(b []byte) { packets.WriteTo(b, from) })
		}
	})
	running.Go(func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				return
			}
			if msg, err := readFrame(conn, maxMessage); err == nil {
				handle(msg, "tcp", func(b []byte) { writeFrame(conn, b) })
			}
			conn.Close()
		}
	})
	t.Cleanup(func() { packets.Close(); streams.Close(); running.Wait() })
	return addr
}

func serve(t *testing.T, upstreams ...netip.AddrPort) (addr string) {
	t.Helper()
	packets, streams, at := listen(t)
	s := Serve(Config{
		Packets: packets, Streams: streams, Upstreams: upstreams, Ceiling: maxTTL, Logger: slog.New(slog.DiscardHandler),
		Allowed: func(string) bool { return true }, Learn: func(string, []Address) error { return nil },
	})
	t.Cleanup(func() { assert.NoError(t, s.Close()); assert.NoError(t, s.Close()) })
	return at.String()
}

func lookup(addr, network, host string) ([]netip.Addr, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, n, _ string) (net.Conn, error) {
		if network != "" {
			n = network
		}
		return new(net.Dialer).DialContext(ctx, n, addr)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return r.LookupNetIP(ctx, "ip4", host)
}

func answerWith(n int) func(dnsmessage.Message, string) *dnsmessage.Message {
	return func(m dnsmessage.Message, network string) *dnsmessage.Message {
		for i := range n {
			m.Answers = append(m.Answers, record(m.Questions[0].Name.String(), 60, address(fmt.Sprintf("192.0.%d.%d", 2+i/250, 1+i%250))))
		}
		if msg, err := m.Pack(); err == nil && network == "udp" && len(msg) > safeSize {
			m.Truncated, m.Answers = true, nil
		}
		return &m
	}
}

func TestN09_BigAnswersComeByTCP(t *testing.T) {
	for _, size := range []int{1, 40, 100, 2000} {
		addr := serve(t, upstream(t, answerWith(size)))
		for _, network := range []string{"", "tcp"} {
			found, err := lookup(addr, network, "big.test.")
			require.NoError(t, err, "%d by %q", size, network)
			assert.Len(t, found, size)
		}
	}
}

func TestN09_TheNextUpstreamIsAsked(t *testing.T) {
	silent := upstream(t, func(dnsmessage.Message, string) *dnsmessage.Message { return nil })
	failing := upstream(t, func(m dnsmessage.Message, _ string) *dnsmessage.Message {
		m.RCode = dnsmessage.RCodeServerFailure
		return &m
	})
	forging := upstream(t, func(m dnsmessage.Message, _ string) *dnsmessage.Message {
		m.ID++
		return &m
	})
	packets, streams, closed := listen(t)
	require.NoError(t, errors.Join(packets.Close(), streams.Close()))
	good := upstream(t, answerWith(1))
	for _, bad := range []netip.AddrPort{failing, closed, silent, forging} {
		found, err := lookup(serve(t, bad, good), "", "a.test.")
		require.NoError(t, err)
		assert.Len(t, found, 1)
	}
	_, err := lookup(serve(t, failing), "", "a.test.")
	require.Error(t, err)
	_, err = lookup(serve(t), "", "a.test.")
	require.Error(t, err, "no upstream at all")
}

// A resolver that hangs holds up neither other questions, nor other sandboxes, nor the end.
func TestN09_ASlowUpstreamDelaysNobodyElse(t *testing.T) {
	ask := func(m dnsmessage.Message, _ string) *dnsmessage.Message {
		if strings.HasPrefix(m.Questions[0].Name.String(), "slow") {
			return nil
		}
		return answerWith(1)(m, "udp")
	}
	up := upstream(t, ask)
	addr, other := serve(t, up), serve(t, up)
	conn, err := net.Dial("udp4", addr)
	require.NoError(t, err)
	defer conn.Close()
	for i := range 3 * maxQueries {
		q := ask4(fmt.Sprintf("slow%d.test.", i))
		_, err := conn.Write(packed(t, q))
		require.NoError(t, err)
	}
	begin := time.Now()
	found, err := lookup(other, "", "quick.test.")
	require.NoError(t, err)
	assert.Len(t, found, 1)
	found, err = lookup(addr, "tcp", "quick.test.")
	require.NoError(t, err)
	assert.Len(t, found, 1)
	assert.Less(t, time.Since(begin), tryTimeout, "it waited for the slow ones")
}

func TestN09_ConnectionsAreBounded(t *testing.T) {
	addr := serve(t, upstream(t, answerWith(1)))
	var idle []net.Conn
	for range maxStreams {
		conn, err := net.Dial("tcp4", addr)
		require.NoError(t, err)
		defer conn.Close()
		idle = append(idle, conn)
	}
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp4", addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = conn.Read(make([]byte, 1))
		var timeout net.Error
		silent := errors.As(err, &timeout) && timeout.Timeout()
		return err != nil && !silent
	}, wait, 10*time.Millisecond, "one more than the most is served")
	require.NoError(t, writeFrame(idle[0], make([]byte, maxQuery+1)))
	idle[0].SetDeadline(time.Now().Add(wait))
	_, err := idle[0].Read(make([]byte, 1))
	require.Error(t, err, "a query that is too long ends the connection")
	_, err = lookup(addr, "tcp", "a.test.")
	require.NoError(t, err, "its place is free again")
}
