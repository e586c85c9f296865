package network

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/impl/egress"
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
				got, err := h.CleanupStaleNamespaces(b.Context(), func(Slot) bool { return false })
				require.NoError(b, err)
				require.Len(b, got, stale)
			}
		})
	}
}
