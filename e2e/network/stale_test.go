package network_test

import (
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/need"
	"wrenn/impl/netns"
	"wrenn/impl/network"
)

// The bounds that the product promises.
const (
	stale      = 2000
	startDelay = time.Second
	cleanUp    = time.Minute
)

// foreign are objects of others whose names are close to ours, and how to take them away again.
const (
	foreign = `
		for n in wrenn-ns-abc wrenn-ns-07 wrenn-ns-0 wrenn-ns-32768 mine; do ip netns add $n; done
		ip link add wrenn-vethx type veth peer name wrenn-vethy
		ip link set wrenn-vethx addrgenmode none up
		ip link set wrenn-vethy addrgenmode none up
		ip link add wrenn-veth-7 type veth peer name wrenn-veth07
		ip addr add 203.0.113.1/24 dev wrenn-vethx
		ip route add 10.11.9.9/32 dev wrenn-vethx proto 99
		ip route add 10.11.200.0/24 dev wrenn-vethx proto 217
		ip -n mine link set lo up
		ip netns exec mine iptables -w -N WRENN-FORWARD
		iptables -w -N WRENNX
		iptables -w -A WRENNX -i wrenn-veth+ -j RETURN
		iptables -w -A FORWARD -i wrenn-vethx -j WRENNX
		iptables -w -t nat -N WRENN-POSTROUTING2
		iptables -w -t nat -A POSTROUTING -s 10.12.0.0/16 -o wrenn-vethx -j MASQUERADE`
	noForeign = `
		iptables -w -t nat -D POSTROUTING -s 10.12.0.0/16 -o wrenn-vethx -j MASQUERADE
		iptables -w -t nat -X WRENN-POSTROUTING2
		iptables -w -D FORWARD -i wrenn-vethx -j WRENNX
		iptables -w -F WRENNX
		iptables -w -X WRENNX
		ip link del wrenn-vethx
		ip link del wrenn-veth-7
		for n in wrenn-ns-abc wrenn-ns-07 wrenn-ns-0 wrenn-ns-32768 mine; do ip netns del $n; done`
)

// plant makes what a crash leaves of the networks of slots 1 to n: namespace, veth pair, route.
func plant(t *testing.T, n int) {
	t.Helper()
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if !assert.NoError(t, plantOne(network.Slot(i)), "slot %d", i) {
					return
				}
			}
		})
	}
	workers.Wait()
}

func plantOne(slot network.Slot) error {
	ns, err := netns.Create(slot.Netns())
	if err != nil {
		return err
	}
	defer ns.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: slot.Veth()})
	veth.PeerName, veth.PeerNamespace = "vpeer", netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	address := &net.IPNet{IP: slot.VethIP().AsSlice(), Mask: net.CIDRMask(31, 32)}
	if err := netlink.AddrAdd(veth, &netlink.Addr{IPNet: address}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	to := &net.IPNet{IP: slot.HostIP().AsSlice(), Mask: net.CIDRMask(32, 32)}
	return netlink.RouteAdd(&netlink.Route{Dst: to, Gw: slot.VpeerIP().AsSlice(), Protocol: 217})
}

// leftovers counts the slots that have a namespace or, where those are gone, a veth, but for those of the sandboxes.
func leftovers(t *testing.T, sandboxes int) int {
	t.Helper()
	names, err := netns.List()
	require.NoError(t, err)
	slots := map[network.Slot]bool{}
	for _, n := range names {
		if s, ok := network.ParseNetns(n); ok {
			slots[s] = true
		}
	}
	if len(slots) > sandboxes {
		return len(slots) - sandboxes // to list 2,000 links again and again would hold up who removes them
	}
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	for _, i := range interfaces {
		if s, ok := network.ParseVeth(i.Name); ok {
			slots[s] = true
		}
	}
	return len(slots) - sandboxes
}

// networkStage is how long the network of a sandbox took, in milliseconds.
func networkStage(box apiclient.Sandbox) float64 {
	for _, s := range box.Wrenn.Stages {
		if s.Name == "network" {
			return s.Ms
		}
	}
	return 0
}

// saved is what iptables-save prints, byte for byte but for the comments, which hold the time, and counters.
func saved(t *testing.T) string {
	t.Helper()
	return shell(t, `iptables-save | grep -v '^#' | sed 's/\[[0-9:]*\]//'`)
}

// TestN06_TwoThousandStaleNetworksDoNotDelayTheStart compares a start on a host full of leftovers with one
// on a clean host, in the same run.
func TestN06_TwoThousandStaleNetworksDoNotDelayTheStart(t *testing.T) {
	need.Short(t, "it plants 2,000 networks")
	dir := harness.Dir(t)
	start(t, dir).Stop() // probes the VMM, which later starts need not
	begun := time.Now()
	s := start(t, dir)
	idleStart := time.Since(begun)
	box := s.Create()
	idleNetwork := networkStage(box)
	s.Stop()

	shell(t, foreign)
	t.Cleanup(func() { shell(t, noForeign) })
	require.Eventually(t, func() bool { return !strings.Contains(shell(t, "ip -o link"), "NO-CARRIER") }, harness.Patience, 5*time.Millisecond)
	before, rulesBefore := harness.Take(t), saved(t)
	begun = time.Now()
	plant(t, stale)
	t.Logf("planted %d networks in %v", stale, time.Since(begun))
	require.Equal(t, stale, leftovers(t, 0))

	begun = time.Now()
	s = start(t, dir)
	served := time.Since(begun)
	var creates []float64
	boxes := []apiclient.Sandbox{s.Create()}
	created := time.Since(begun)
	creates = append(creates, networkStage(boxes[0]))
	left := leftovers(t, len(boxes))
	require.Eventually(t, func() bool {
		if len(boxes) < 5 {
			boxes = append(boxes, s.Create())
			creates = append(creates, networkStage(boxes[len(boxes)-1]))
		}
		return leftovers(t, len(boxes)) <= 0
	}, harness.Patience, 50*time.Millisecond, "not clean")
	clean := time.Since(begun)
	slices.Sort(creates)
	t.Logf("serves after %v (clean host: %v); first sandbox after %v, beside %d leftovers; all clean after %v",
		served, idleStart, created, left, clean)
	t.Logf("networks of the sandboxes created meanwhile took %.1f to %.1f ms (clean host: %.1f ms)", creates[0], creates[len(creates)-1], idleNetwork)
	assert.Less(t, served, idleStart+startDelay)
	assert.Less(t, created, clean, "the first create had to wait for the cleaning")
	assert.Less(t, clean, cleanUp)
	for _, box := range boxes {
		assert.Equal(t, "ok\n", s.Exec(box, "echo", "ok"), "its network was taken for a leftover")
		require.NoError(t, s.Client.Kill(t.Context(), box.SandboxID))
	}
	require.Eventually(t, func() bool { return strings.Contains(s.Log(), "cleared up after an earlier agent") }, harness.Patience, 10*time.Millisecond)
	s.Stop()
	before.Same(t)
	assert.Equal(t, rulesBefore, saved(t))
	assert.Equal(t, "-N WRENN-FORWARD\n", shell(t, "ip netns exec mine iptables -w -S | grep WRENN"), "inside another's namespace")
}
