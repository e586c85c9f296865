package network

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/egress"
	"wrenn/impl/netns"
	"wrenn/impl/network/nameserver"
)

// SeedEnv makes the random policies those of an earlier run.
const SeedEnv = "WRENN_TEST_SEED"

func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(SeedEnv); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("%s=%d makes this run again", SeedEnv, seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// sentinel is open in every policy of the test: what was sent before it has come through or never will.
var sentinel = netip.MustParseAddr("203.0.113.250")

// wire is the host's end of a slot's veth pair, where everything passes that the namespace lets out, and
// where the host's own rules have not looked yet.
type wire struct {
	fd   int
	from net.PacketConn // in the guest
}

func newWire(t *testing.T, slot Slot, guest *netns.Handle) *wire {
	t.Helper()
	link, err := net.InterfaceByName(slot.Veth())
	require.NoError(t, err)
	const ip = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8 // in network order
	w := &wire{}
	w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ip)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, unix.Close(w.fd)) })
	require.NoError(t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: link.Index}))
	timeout := unix.NsecToTimeval(int64(10 * time.Millisecond))
	require.NoError(t, unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	require.NoError(t, in(guest, func() (err error) {
		w.from, err = net.ListenPacket("udp4", ":0")
		return err
	}))
	t.Cleanup(func() { w.from.Close() })
	return w
}

// passed sends a datagram to each address and returns those that came out of the namespace.
func (w *wire) passed(t *testing.T, run uint32, addrs []netip.Addr) map[netip.Addr]bool {
	t.Helper()
	payload := binary.BigEndian.AppendUint32([]byte("model"), run)
	send := func(addr netip.Addr) {
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 9))
		// An answer to an earlier one ("prohibited") is told at the next send, which then sends nothing.
		for range 3 {
			if _, err := w.from.WriteTo(payload, to); err == nil {
				return
			}
		}
	}
	for _, addr := range addrs {
		send(addr)
	}
	found := map[netip.Addr]bool{}
	packet := make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		send(sentinel)
		for {
			n, _, err := unix.Recvfrom(w.fd, packet, 0)
			if err != nil {
				break // none for a while: the sentinel was lost, and is sent again
			}
			// An IPv4 header without options, and UDP's, are before the payload.
			if n < 28 || string(packet[28:n]) != string(payload) {
				continue
			}
			addr := netip.AddrFrom4([4]byte(packet[destinationOffset : destinationOffset+4]))
			if addr == sentinel {
				return found
			}
			found[addr] = true
		}
	}
	require.FailNow(t, "nothing comes out of the namespace")
	return nil
}

// randomPolicy draws ranges close together, so that they hold and touch one another.
func randomPolicy(r *rand.Rand) Policy {
	bases := []string{"8.8.8.8", "10.99.0.1", "172.16.9.9", "192.168.7.7", "198.51.100.80", "100.64.1.1", "1.0.0.0", "223.255.255.255"}
	draw := func(most int) (list []netip.Prefix) {
		for range r.IntN(most + 1) {
			addr := netip.MustParseAddr(bases[r.IntN(len(bases))]).As4()
			addr[3] ^= byte(r.IntN(8))
			list = append(list, netip.PrefixFrom(netip.AddrFrom4(addr), []int{0, 1, 7, 8, 12, 16, 20, 24, 29, 30, 31, 32}[r.IntN(12)]).Masked())
		}
		return list
	}
	p := Policy{AllowInternet: r.IntN(2) == 0, Allow: draw(4), Deny: draw(4)}
	if r.IntN(2) == 0 {
		p.Domains = []string{"model.test"}
	}
	p.Allow = append(p.Allow, netip.PrefixFrom(sentinel, 32))
	return p
}

// edges are the addresses at both ends of each range of the policy and just outside.
func edges(p Policy) (list []netip.Addr) {
	for _, prefix := range append(append(append([]netip.Prefix{}, p.Allow...), p.Deny...), egress.PrivateRanges()...) {
		first := prefix.Masked().Addr()
		b := first.As4()
		last := binary.BigEndian.Uint32(b[:]) | uint32(1<<(32-prefix.Bits())-1)
		end := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, last)))
		list = append(list, first, end, first.Prev(), end.Next())
	}
	return list
}

// routable leaves out what no router passes on whatever its rules (the classes D and E, loopback and
// "this network"), and what lies within the namespace.
func routable(addr netip.Addr, slot Slot) bool {
	if !addr.IsValid() || addr == sentinel || addr == slot.VpeerIP() || addr == slot.VethIP() {
		return false
	}
	for _, p := range []string{"0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "169.254.0.20/30"} {
		if netip.MustParsePrefix(p).Contains(addr) {
			return false
		}
	}
	return true
}

// TestN09_TheKernelDecidesAsTheModel holds the rules of the namespace against egress.Policy.Allows.
func TestN09_TheKernelDecidesAsTheModel(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	t.Cleanup(func() { assert.NoError(t, h.Close()) })
	const slot Slot = 61
	guest := newSandbox(t, h, slot, Policy{})
	w := newWire(t, slot, guest)
	r := seeded(t)
	cases, open := 0, 0
	named := map[netip.Addr]bool{} // kept as long as policies have the name
	for run := range 200 {
		p := randomPolicy(r)
		require.NoError(t, h.SetPolicy(t.Context(), slot, p), "%+v", p)
		addrs := edges(p)
		for range 20 {
			addrs = append(addrs, netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.Uint32()))))
		}
		r.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		asked := []netip.Addr{}
		for _, addr := range addrs {
			if len(asked) < 40 && routable(addr, slot) {
				asked = append(asked, addr)
			}
		}
		n := h.namesOf(slot)
		require.Equal(t, len(p.Domains) > 0, n != nil)
		if n == nil {
			named = map[netip.Addr]bool{}
		} else {
			for _, addr := range asked[:len(asked)/2] {
				named[addr] = true
				require.NoError(t, n.learn("model.test.", []nameserver.Address{{Addr: addr, TTL: time.Minute}}))
			}
		}
		passed := w.passed(t, uint32(run), asked)
		for _, addr := range asked {
			want := p.Allows(addr, named[addr])
			require.Equal(t, want, passed[addr], "%s (of a name: %v) under %+v", addr, named[addr], p)
			cases++
			if want {
				open++
			}
		}
	}
	t.Logf("%d decisions, %d of them open", cases, open)
	assert.Greater(t, open, cases/10)
	assert.Less(t, open, cases*9/10)
}
