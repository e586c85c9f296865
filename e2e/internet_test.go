package e2e_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"wrenn/impl/need"
	"wrenn/impl/netns"
)

// The internet of these tests is a namespace behind the host, with addresses of TEST-NET-2 (RFC 5737).
const (
	internetName = "wrenn-e2e-internet"
	resolver     = "198.51.100.53"
	goodServer   = "198.51.100.80"
	otherServer  = "198.51.100.81"
	// The ports of each server: one says a line, one takes what is sent and says when it has it all, one
	// sends without end.
	helloPort, sinkPort, sourcePort = 7001, 7002, 7003
)

// newInternet makes the namespace with its servers and its resolver, which knows good.test, other.test
// and evil.test (a private address). All of it goes with the test.
func newInternet(t *testing.T) {
	t.Helper()
	need.Root(t)
	need.Program(t, "ip", "sh")
	script := func(text string) {
		t.Helper()
		out, err := exec.Command("sh", "-ec", text).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	ns, err := netns.Create(internetName)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, ns.Close())
		require.NoError(t, netns.Delete(internetName))
	})
	script(strings.NewReplacer("NS", internetName).Replace(`
		ip link add e2e-uplink type veth peer name eth0 netns NS
		ip addr add 203.0.113.1/30 dev e2e-uplink
		ip link set e2e-uplink up
		ip -n NS link set lo up
		ip -n NS addr add 203.0.113.2/30 dev eth0
		ip -n NS link set eth0 up
		ip route add 198.51.100.0/24 via 203.0.113.2`))
	t.Cleanup(func() { script("ip link del e2e-uplink") })
	for _, addr := range []string{resolver, goodServer, otherServer} {
		script("ip -n " + internetName + " addr add " + addr + "/32 dev lo")
	}
	serve(t, ns, helloPort, func(conn net.Conn) { fmt.Fprintln(conn, "hello") })
	serve(t, ns, sinkPort, func(conn net.Conn) {
		n, _ := io.Copy(io.Discard, conn)
		fmt.Fprintln(conn, n)
	})
	serve(t, ns, sourcePort, func(conn net.Conn) {
		for block := make([]byte, 64<<10); ; {
			if _, err := conn.Write(block); err != nil {
				return
			}
		}
	})
	serveNames(t, ns, map[string]string{"good.test.": goodServer, "other.test.": otherServer, "evil.test.": "10.11.0.1"})
}

// serve answers connections on a port of every address of ns until the test ends.
func serve(t *testing.T, ns *netns.Handle, port int, answer func(net.Conn)) {
	t.Helper()
	var l net.Listener
	require.NoError(t, ns.Do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	}))
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(time.Minute))
				answer(conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
}

// serveNames is a resolver that knows one address of each name.
func serveNames(t *testing.T, ns *netns.Handle, addresses map[string]string) {
	t.Helper()
	var conn net.PacketConn
	require.NoError(t, ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", resolver+":53")
		return err
	}))
	var running sync.WaitGroup
	running.Go(func() {
		for buf := make([]byte, 4096); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			addr, ok := addresses[strings.ToLower(q.Name.String())]
			switch {
			case !ok:
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
					Body:   &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()},
				}}
			}
			if packed, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(packed, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); running.Wait() })
}
