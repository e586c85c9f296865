package network

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"wrenn/impl/egress"
	"wrenn/impl/netns"
)

// More addresses on the internet, and the resolver there.
const (
	secondServer = "198.51.100.81"
	thirdServer  = "198.51.100.82"
	zoneServer   = resolverIP + ":5353"
	// nowhere is a resolver that does not exist.
	nowhere = "192.0.2.200:53"
)

// zone is what the test's resolver knows: the records of each name.
type zone map[string][]dnsmessage.ResourceBody

func a(addr string) dnsmessage.ResourceBody {
	return &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()}
}

func cname(name string) dnsmessage.ResourceBody {
	return &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(name)}
}

// answer follows the CNAMEs of the zone, as resolvers do. Every record lives a second.
func (z zone) answer(msg []byte, size int) []byte {
	var m dnsmessage.Message
	if m.Unpack(msg) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	for at := m.Questions[0].Name; ; {
		records, ok := z[strings.ToLower(at.String())]
		if !ok && len(m.Answers) == 0 {
			m.RCode = dnsmessage.RCodeNameError
		}
		var next *dnsmessage.CNAMEResource
		for _, body := range records {
			alias, isAlias := body.(*dnsmessage.CNAMEResource)
			if _, isA := body.(*dnsmessage.AResource); isAlias || isA && m.Questions[0].Type == dnsmessage.TypeA {
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: at, Class: dnsmessage.ClassINET, TTL: 1}, Body: body,
				})
			}
			if isAlias {
				next = alias
			}
		}
		if next == nil {
			break
		}
		at = next.CNAME
	}
	packed, err := m.Pack()
	if err == nil && len(packed) > size {
		m.Truncated, m.Answers = true, nil
		packed, err = m.Pack()
	}
	if err != nil {
		panic(err)
	}
	return packed
}

// serve answers from ns at addr until the test ends; by TCP too where the port is not 53.
func (z zone) serve(tb testing.TB, ns *netns.Handle, addr string) {
	tb.Helper()
	var packets net.PacketConn
	var streams net.Listener
	require.NoError(tb, in(ns, func() (err error) {
		if packets, err = net.ListenPacket("udp4", addr); err == nil && !strings.HasSuffix(addr, ":53") {
			streams, err = net.Listen("tcp4", addr)
		}
		return err
	}))
	var running sync.WaitGroup
	tb.Cleanup(running.Wait)
	running.Go(func() {
		for buf := make([]byte, 4096); ; {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(z.answer(buf[:n], 1232), from)
		}
	})
	tb.Cleanup(func() { packets.Close() })
	if streams == nil {
		return
	}
	running.Go(func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(patience))
			if msg, err := readFrame(conn); err == nil {
				writeFrame(conn, z.answer(msg, 65535))
			}
			conn.Close()
		}
	})
	tb.Cleanup(func() { streams.Close() })
}

func readFrame(conn net.Conn) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, msg)
	return msg, err
}

func writeFrame(conn net.Conn, msg []byte) {
	_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
}

// newNamedHost is a host whose forwarders ask the zone, with answers that hold for the given time.
func newNamedHost(t *testing.T, z zone, hold time.Duration) (*Host, *netns.Handle) {
	t.Helper()
	h := setUp(t)
	h.cfg.Upstreams = []netip.AddrPort{netip.MustParseAddrPort(zoneServer)}
	h.lifetimes = lifetimes{floor: hold, ceiling: hold, grace: 0}
	if hold < time.Second {
		h.lifetimes.ceiling = time.Second
	}
	t.Cleanup(func() { assert.NoError(t, h.Close()) })
	outside := newOutside(t)
	for _, ip := range []string{secondServer, thirdServer} {
		run(t, "ip", "-n", "outside", "addr", "add", ip+"/32", "dev", "lo")
	}
	z.serve(t, outside, zoneServer)
	return h, outside
}

func policy(t *testing.T, allow ...string) Policy {
	t.Helper()
	p, err := egress.Rules{AllowOut: allow}.Policy()
	require.NoError(t, err)
	return p
}

// lookup asks in the guest as a Go program does, whatever server it was told of.
func lookup(guest *netns.Handle, network, server, name string) ([]netip.Addr, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, byDefault, _ string) (conn net.Conn, err error) {
		if network != "" {
			byDefault = network
		}
		err = in(guest, func() error {
			conn, err = new(net.Dialer).DialContext(ctx, byDefault, server)
			return err
		})
		return conn, err
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return r.LookupNetIP(ctx, "ip4", name)
}

func assertResolves(t *testing.T, guest *netns.Handle, name string, want ...string) {
	t.Helper()
	found, err := lookup(guest, "", nowhere, name)
	if !assert.NoError(t, err, name) {
		return
	}
	var got []string
	for _, addr := range found {
		got = append(got, addr.Unmap().String())
	}
	assert.ElementsMatch(t, want, got, name)
}
