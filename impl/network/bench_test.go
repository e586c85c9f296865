package network

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/egress"
	"wrenn/impl/need"
)

func BenchmarkN04_CreateRemove(b *testing.B) {
	h := setUp(b)
	b.Run("create", func(b *testing.B) {
		for b.Loop() {
			require.NoError(b, h.CreateNetwork(b.Context(), 1, Policy{AllowInternet: true}))
			b.StopTimer()
			require.NoError(b, h.RemoveNetwork(b.Context(), 1))
			b.StartTimer()
		}
	})
	b.Run("remove", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			require.NoError(b, h.CreateNetwork(b.Context(), 1, Policy{AllowInternet: true}))
			b.StartTimer()
			require.NoError(b, h.RemoveNetwork(b.Context(), 1))
		}
	})
	b.Run("from the pool", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			require.NoError(b, h.CreateReady(b.Context(), 1))
			b.StartTimer()
			require.NoError(b, h.HandOver(b.Context(), 1, Policy{AllowInternet: true}))
			b.StopTimer()
			require.NoError(b, h.RemoveNetwork(b.Context(), 1))
			b.StartTimer()
		}
	})
	b.Run("set policy", func(b *testing.B) {
		require.NoError(b, h.CreateNetwork(b.Context(), 1, Policy{AllowInternet: true}))
		for b.Loop() {
			require.NoError(b, h.SetPolicy(b.Context(), 1, Policy{AllowInternet: true}))
		}
		require.NoError(b, h.RemoveNetwork(b.Context(), 1))
	})
}

// forked makes as nearly the same network as iproute2 and iptables can, one command at a time.
var forked = []string{
	"ip netns add wrenn-ns-1",
	"ip netns exec wrenn-ns-1 sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
	"ip link add wrenn-veth1 type veth peer name vpeer netns wrenn-ns-1",
	"sysctl -qw net.ipv4.conf.wrenn-veth1.rp_filter=1 net.ipv6.conf.wrenn-veth1.disable_ipv6=1",
	"ip addr add 10.12.0.2/31 dev wrenn-veth1",
	"ip link set wrenn-veth1 up",
	"ip -n wrenn-ns-1 addr add 10.12.0.3/31 dev vpeer",
	"ip -n wrenn-ns-1 link set vpeer up",
	"ip -n wrenn-ns-1 route add default via 10.12.0.2",
	"ip netns exec wrenn-ns-1 ip tuntap add tap0 mode tap vnet_hdr",
	"ip -n wrenn-ns-1 link set tap0 address " + TapMAC + " txqueuelen 5000 up",
	"ip -n wrenn-ns-1 addr add 169.254.0.22/30 dev tap0",
	"ip route add 10.11.0.1/32 via 10.12.0.3",
	"ip netns exec wrenn-ns-1 iptables -w -t nat -A PREROUTING -i vpeer -d 10.11.0.1 -j DNAT --to-destination " + GuestIP,
	"ip netns exec wrenn-ns-1 iptables -w -t nat -A POSTROUTING -o vpeer -s " + GuestIP + " -j SNAT --to-source 10.12.0.3",
	"ip netns exec wrenn-ns-1 iptables -w -t raw -A PREROUTING -i tap0 ! -s " + GuestIP + " -j DROP",
	"ip netns exec wrenn-ns-1 iptables -w -A INPUT -i tap0 -j DROP",
	"ip netns exec wrenn-ns-1 iptables -w -P FORWARD DROP",
	"ip netns exec wrenn-ns-1 iptables -w -A FORWARD -i vpeer -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
	"ip netns exec wrenn-ns-1 iptables -w -A FORWARD -i vpeer -m conntrack --ctstate DNAT -j ACCEPT",
	"ip netns exec wrenn-ns-1 iptables -w -A FORWARD -i tap0 -m conntrack --ctdir REPLY -j ACCEPT",
}

func init() {
	for _, p := range egress.PrivateRanges() {
		forked = append(forked, "ip netns exec wrenn-ns-1 iptables -w -A FORWARD -i tap0 -d "+p.String()+" -j REJECT")
	}
	forked = append(forked, "ip netns exec wrenn-ns-1 iptables -w -A FORWARD -i tap0 -j ACCEPT")
}

// BenchmarkN04_CreateForked is what CreateRemove/create is measured against.
func BenchmarkN04_CreateForked(b *testing.B) {
	setUp(b)
	for b.Loop() {
		for _, command := range forked {
			run(b, strings.Fields(command)...)
		}
		b.StopTimer()
		shell(b, "ip link del wrenn-veth1; ip netns del wrenn-ns-1")
		b.StartTimer()
	}
	b.ReportMetric(float64(len(forked)), "commands")
}

// TestN04_CostsAreInOrder compares the three ways of making a network, taking turns so that a load on the
// machine meets all of them. One that is cold should cost at most a fifth of the forked way; what is
// asserted leaves room for noise.
func TestN04_CostsAreInOrder(t *testing.T) {
	need.Short(t, "it forks hundreds of commands")
	h := setUp(t)
	open := Policy{AllowInternet: true}
	took := map[string][]time.Duration{}
	timed := func(way string, create func()) {
		start := time.Now()
		create()
		took[way] = append(took[way], time.Since(start))
		require.NoError(t, h.RemoveNetwork(t.Context(), 1))
	}
	for range 15 {
		timed("forked", func() {
			for _, command := range forked {
				run(t, strings.Fields(command)...)
			}
		})
		timed("cold", func() { require.NoError(t, h.CreateNetwork(t.Context(), 1, open)) })
		require.NoError(t, h.CreateReady(t.Context(), 1))
		timed("pool", func() { require.NoError(t, h.HandOver(t.Context(), 1, open)) })
	}
	p50 := map[string]time.Duration{}
	for way, all := range took {
		p50[way] = median(all)
	}
	t.Logf("p50: forked %v (%d commands), cold %v (1/%.1f of it), from the pool %v (1/%.1f of cold)", p50["forked"], len(forked),
		p50["cold"], float64(p50["forked"])/float64(p50["cold"]), p50["pool"], float64(p50["cold"])/float64(p50["pool"]))
	assert.Less(t, p50["cold"], p50["forked"]/2)
	assert.Less(t, p50["pool"], p50["cold"])
}

func BenchmarkN06_Reclaim(b *testing.B) {
	h := setUp(b)
	for _, stale := range []int{100, 500} {
		b.Run(fmt.Sprintf("stale=%d", stale), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				for s := range stale {
					require.NoError(b, h.CreateNetwork(b.Context(), Slot(s+1), Policy{}))
				}
				b.StartTimer()
				got, err := h.CleanupStaleNamespaces(b.Context(), newAllocator(b, MaxSlot))
				require.NoError(b, err)
				require.Len(b, got, stale)
			}
		})
	}
}
