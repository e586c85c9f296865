package network

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"wrenn/impl/netns"
)

// backgroundOf is for clean-up, which runs after the test's own context has ended.
func backgroundOf(tb testing.TB) context.Context { return context.WithoutCancel(tb.Context()) }

func assertReaches(t *testing.T, from *netns.Handle, ip, seenAs string) {
	t.Helper()
	got, err := echo(from, net.JoinHostPort(ip, echoPort), patience)
	if assert.NoError(t, err, ip) && seenAs != "" {
		assert.Equal(t, seenAs, got, "the address by which %s saw us", ip)
	}
}

// assertBarred tries all at once, for each that is dropped in silence costs a wait.
func assertBarred(t *testing.T, from *netns.Handle, addrs ...string) {
	t.Helper()
	var tries sync.WaitGroup
	for _, addr := range addrs {
		tries.Go(func() {
			seen, err := echo(from, addr, refusal)
			assert.Error(t, err, "%s was reached, and saw %s", addr, seen)
		})
	}
	tries.Wait()
}

// at is the echo server on each address.
func at(ips ...string) []string {
	var addrs []string
	for _, ip := range ips {
		addrs = append(addrs, net.JoinHostPort(ip, echoPort))
	}
	return addrs
}

// all are the addresses of a slot outside its namespace and in it.
func all(s Slot) []string {
	return []string{s.HostIP().String(), s.VethIP().String(), s.VpeerIP().String()}
}

func TestN08_N09_WhatASandboxReaches(t *testing.T) {
	for _, forwardPolicy := range []string{"ACCEPT", "DROP"} {
		t.Run("FORWARD "+forwardPolicy, func(t *testing.T) {
			h := setUp(t)
			outside := newOutside(t)
			shell(t, "iptables -w -P FORWARD "+forwardPolicy)
			t.Cleanup(func() { shell(t, "iptables -w -P FORWARD ACCEPT") })
			serveEcho(t, nil, "0.0.0.0:"+echoPort)
			const a, b Slot = 1, MaxSlot
			guestA := newSandbox(t, h, a, Policy{AllowInternet: true})
			guestB := newSandbox(t, h, b, Policy{AllowInternet: true})

			t.Run("host to guests", func(t *testing.T) {
				assertReaches(t, nil, a.HostIP().String(), a.VethIP().String())
				assertReaches(t, nil, b.HostIP().String(), b.VethIP().String())
			})
			t.Run("guest to the internet, translated", func(t *testing.T) {
				assertReaches(t, guestA, publicServer, hostUplink)
				assertReaches(t, guestB, publicServer, hostUplink)
			})
			t.Run("guest to the resolver, port 53 alone", func(t *testing.T) {
				_, err := echo(guestA, resolverIP+":53", patience)
				require.NoError(t, err)
				assertBarred(t, guestA, at(resolverIP)...)
				got := received(t, outside, resolverIP+":53", func() {
					sendAs(t, guestA, "eth0", GuestIP, resolverIP+":53", "query")
				})
				assert.Equal(t, []string{"query from " + hostUplink}, got)
			})
			t.Run("guest to guest", func(t *testing.T) {
				assertBarred(t, guestA, at(all(b)...)...)
				assertBarred(t, guestB, at(all(a)...)...)
			})
			t.Run("guest to the host", func(t *testing.T) {
				assertReaches(t, outside, hostUplink, outsideUplink)
				assertBarred(t, guestA, at(append(all(a), hostUplink)...)...)
			})
			t.Run("guest to its namespace", func(t *testing.T) {
				inner, err := netns.Open(a.Netns())
				require.NoError(t, err)
				defer inner.Close()
				serveEcho(t, inner, "0.0.0.0:"+echoPort)
				assertReaches(t, nil, a.VpeerIP().String(), a.VethIP().String())
				assertBarred(t, guestA, at(TapIP, a.VpeerIP().String())...)
			})
			t.Run("guest to private ranges and metadata", func(t *testing.T) {
				for _, ip := range forbidden {
					assertReaches(t, nil, ip, "")
				}
				assertBarred(t, guestA, at(forbidden...)...)
			})
			t.Run("outside to guest", func(t *testing.T) { assertNoWayIn(t, outside, guestA, a) })
		})
	}
}

// assertNoWayIn tries from a neighbour of the host that routes our ranges to it. The datagrams need no
// answer, so they show what gets in, not only what comes back.
func assertNoWayIn(t *testing.T, outside, guest *netns.Handle, slot Slot) {
	t.Helper()
	shell(t, "ip -n outside route add 10.0.0.0/8 via "+hostUplink)
	defer shell(t, "ip -n outside route del 10.0.0.0/8")
	assertBarred(t, outside, at(slot.HostIP().String(), slot.VpeerIP().String())...)
	datagram := slot.HostIP().String() + ":99"
	got := received(t, guest, ":99", func() {
		sendAs(t, outside, "eth0", outsideUplink, datagram, "from outside")
		sendAs(t, nil, "uplink", hostUplink, datagram, "from the host")
	})
	assert.Equal(t, []string{"from the host from " + hostUplink}, got)
}

func TestN08_AResolverOnTheHostIsOpenOnPort53Alone(t *testing.T) {
	h := newHost(t)
	h.cfg.Resolvers = []netip.Addr{netip.MustParseAddr(hostUplink)}
	require.NoError(t, h.Setup(t.Context()))
	t.Cleanup(func() { require.NoError(t, h.Teardown(backgroundOf(t))) })
	newOutside(t)
	serveEcho(t, nil, "0.0.0.0:53")
	serveEcho(t, nil, "0.0.0.0:"+echoPort)
	guest := newSandbox(t, h, 3, Policy{AllowInternet: true})
	_, err := echo(guest, hostUplink+":53", patience)
	require.NoError(t, err)
	assertBarred(t, guest, at(hostUplink)...)
	require.NoError(t, h.SetPolicy(t.Context(), 3, Policy{}))
	assertBarred(t, guest, hostUplink+":53")
}

// The messages that tell a sender of a narrower path must find their way back through both
// translations, or uploads stall for ever.
func TestN08_NarrowPathBeyondTheHost(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	shell(t, "ip route add "+publicServer+" via "+outsideUplink+" mtu lock 1300")
	guest := newSandbox(t, h, 4, Policy{AllowInternet: true})
	shell(t, "ip netns exec guest-4 sh -c 'echo 0 > /proc/sys/net/ipv4/tcp_mtu_probing'")
	assertReaches(t, guest, publicServer, hostUplink)
}

func TestN09_RefusalComesAtOnce(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	guest := newSandbox(t, h, 5, Policy{})
	start := time.Now()
	_, err := echo(guest, at(publicServer)[0], patience)
	require.Error(t, err)
	assert.Less(t, time.Since(start), patience/2, "the guest waited for a timeout: %v", err)
}

func TestN09_PublishedPortOfTheHostIsNoWayIn(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	guest := newSandbox(t, h, 5, Policy{AllowInternet: true})
	const published = "203.0.113.77"
	rule := "PREROUTING -d " + published + " -p tcp -j DNAT --to-destination " + forbidden[0]
	shell(t, "ip addr add "+published+"/32 dev uplink; iptables -w -t nat -A "+rule)
	t.Cleanup(func() { shell(t, "iptables -w -t nat -D "+rule) })
	assertBarred(t, guest, at(published)...)

	shell(t, "iptables -w -D WRENN-FORWARD -i wrenn-veth+ -m conntrack --ctstate DNAT -j DROP")
	assertReaches(t, guest, published, hostUplink)
	require.NoError(t, h.Setup(t.Context()))
	assertBarred(t, guest, at(published)...)
}

func TestN09_PolicyAtCreateAndAtRunTime(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	prefix := func(s ...string) (list []netip.Prefix) {
		for _, p := range s {
			list = append(list, netip.MustParsePrefix(p))
		}
		return list
	}
	guest := newSandbox(t, h, 9, Policy{})
	newSandbox(t, h, 10, Policy{AllowInternet: true})
	servers := append([]string{publicServer}, forbidden...)
	for _, tc := range []struct {
		name   string
		policy Policy
		opens  []string
	}{
		{"nothing", Policy{}, nil},
		{"internet", Policy{AllowInternet: true}, []string{publicServer}},
		{"one private range", Policy{AllowInternet: true, Allow: prefix("10.99.0.0/24")}, []string{publicServer, "10.99.0.1"}},
		{"a private range alone, adjacent ones, duplicates and overlaps", Policy{
			Allow: prefix("192.168.7.7/32", "192.168.7.6/32", "192.168.7.0/24", "172.16.9.9/32", "172.16.9.9/32"),
		}, []string{"192.168.7.7", "172.16.9.9"}},
		{"internet but for a range", Policy{AllowInternet: true, Deny: prefix("198.51.100.0/24")}, nil},
		{"allow beats deny", Policy{Allow: prefix(publicServer + "/32"), Deny: prefix("0.0.0.0/0")}, []string{publicServer}},
		{"everything that a policy can open", Policy{Allow: prefix("0.0.0.0/0")},
			[]string{publicServer, "10.99.0.1", "172.16.9.9", "192.168.7.7", "100.64.1.1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.NoError(t, h.SetPolicy(t.Context(), 9, tc.policy))
			open := map[string]bool{}
			for _, ip := range tc.opens {
				open[ip] = true
			}
			barred := append(all(10), hostUplink)
			for _, ip := range servers {
				if open[ip] {
					assertReaches(t, guest, ip, hostUplink)
				} else {
					barred = append(barred, ip)
				}
			}
			assertBarred(t, guest, at(barred...)...)
			assertReaches(t, nil, Slot(9).HostIP().String(), "")
		})
	}
}

func TestN09_PolicyStopsConnectionsThatAreOpen(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	guest := newSandbox(t, h, 9, Policy{AllowInternet: true})
	var conn net.Conn
	require.NoError(t, guest.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", at(publicServer)[0], patience)
		return err
	}))
	defer conn.Close()
	buf := make([]byte, 64)
	ping := func(limit time.Duration) error {
		conn.SetDeadline(time.Now().Add(limit))
		if _, err := conn.Write([]byte("ping")); err != nil {
			return err
		}
		_, err := conn.Read(buf)
		return err
	}
	require.NoError(t, ping(patience), "the greeting")
	require.NoError(t, ping(patience), "an echo")
	require.NoError(t, h.SetPolicy(t.Context(), 9, Policy{}))
	for conn.SetReadDeadline(time.Now().Add(refusal)); ; {
		if _, err := conn.Read(buf); err != nil {
			break
		}
	}
	require.Error(t, ping(refusal), "the connection still works")
	require.NoError(t, h.SetPolicy(t.Context(), 9, Policy{AllowInternet: true}))
}

// received lists the datagrams that arrive at addr during send and for a while after.
func received(t *testing.T, ns *netns.Handle, addr string, send func()) []string {
	t.Helper()
	var conn net.PacketConn
	require.NoError(t, in(ns, func() (err error) {
		conn, err = net.ListenPacket("udp4", addr)
		return err
	}))
	defer conn.Close()
	send()
	var got []string
	buf := make([]byte, 64)
	conn.SetReadDeadline(time.Now().Add(refusal))
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return got
		}
		got = append(got, string(buf[:n])+" from "+from.(*net.UDPAddr).IP.String())
	}
}

// sendAs sends one datagram from ns with the source address, after giving ns that address.
func sendAs(t *testing.T, ns *netns.Handle, link, source, to, payload string) {
	t.Helper()
	require.NoError(t, in(ns, func() error {
		dev, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(source + "/32")
		if err != nil {
			return err
		}
		_ = netlink.AddrAdd(dev, addr)
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}}
		conn, err := dialer.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte(payload))
		return err
	}))
}

func TestN09_SpoofedSourcesPassNowhere(t *testing.T) {
	h := setUp(t)
	outside := newOutside(t)
	const a, b Slot = 21, 22
	guest := newSandbox(t, h, a, Policy{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}})
	newSandbox(t, h, b, Policy{AllowInternet: true})
	spoofs := []string{"198.51.100.9", b.VpeerIP().String(), b.HostIP().String(), a.VpeerIP().String(), a.HostIP().String(), "10.1.2.3"}

	t.Run("by the guest", func(t *testing.T) {
		got := received(t, outside, publicServer+":99", func() {
			for _, source := range spoofs {
				sendAs(t, guest, "eth0", source, publicServer+":99", "spoof "+source)
			}
			sendAs(t, guest, "eth0", GuestIP, publicServer+":99", "honest")
		})
		assert.Equal(t, []string{"honest from " + hostUplink}, got)
	})
	t.Run("by the guest, the namespace alone", func(t *testing.T) {
		shell(t, "iptables -w -D FORWARD -j WRENN-FORWARD; echo 0 > /proc/sys/net/ipv4/conf/"+a.Veth()+"/rp_filter")
		defer func() {
			require.NoError(t, h.Setup(t.Context()))
			shell(t, "echo 1 > /proc/sys/net/ipv4/conf/"+a.Veth()+"/rp_filter")
		}()
		got := received(t, outside, publicServer+":99", func() {
			for _, source := range spoofs {
				sendAs(t, guest, "eth0", source, publicServer+":99", "spoof "+source)
			}
			sendAs(t, guest, "eth0", GuestIP, publicServer+":99", "honest")
		})
		assert.Equal(t, []string{"honest from " + hostUplink}, got)
	})
	// As if the namespace's own rules had failed: the host's stop what is not the slot's own address.
	inner, err := netns.Open(a.Netns())
	require.NoError(t, err)
	defer inner.Close()
	for _, tc := range []struct {
		name, reversePathFilter string
		spoofs                  []string
	}{
		{"past the namespace", "1", []string{"198.51.100.9", b.VpeerIP().String(), b.HostIP().String()}},
		{"past the namespace, rules alone", "0", []string{"198.51.100.9", b.HostIP().String()}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			setting := "/proc/sys/net/ipv4/conf/" + a.Veth() + "/rp_filter"
			require.NoError(t, writeSetting(setting, tc.reversePathFilter))
			defer writeSetting(setting, "1")
			got := received(t, outside, publicServer+":99", func() {
				for _, source := range tc.spoofs {
					sendAs(t, inner, vpeerName, source, publicServer+":99", "spoof "+source)
				}
				sendAs(t, inner, vpeerName, a.VpeerIP().String(), publicServer+":99", "honest")
			})
			assert.Equal(t, []string{"honest from " + hostUplink}, got)
		})
	}
}

func TestN09_NoIPv6(t *testing.T) {
	h := setUp(t)
	newSandbox(t, h, 31, Policy{AllowInternet: true})
	inner, err := netns.Open(Slot(31).Netns())
	require.NoError(t, err)
	defer inner.Close()
	assert.Empty(t, addresses(t, inner, netlink.FAMILY_V6))
	for _, a := range addresses(t, nil, netlink.FAMILY_V6) {
		assert.NotContains(t, a, Slot(31).Veth())
	}
	v6 := run(t, "ip", "-6", "-o", "addr", "show", "dev", Slot(31).Veth())
	assert.Empty(t, v6)
}
