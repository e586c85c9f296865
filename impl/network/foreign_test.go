package network

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// others is everything on the host, to the byte: what iptables-save prints but for its comments, which hold
// the time, and inside another program's namespace too.
func others(t *testing.T) string {
	t.Helper()
	return shell(t, `
		iptables-save -c | grep -v '^#'
		ip -d -o link | sort -t: -k2
		ip -d addr
		ip -d route show table all
		ip rule
		ls -i /run/netns
		ip netns exec mine iptables-save -c | grep -v '^#'
		ip -n mine -d link
		ip -n mine -d addr
		ip -n mine -d route show table all`)
}

// foreignObjects plants what looks like ours in every table and kind.
func foreignObjects(t *testing.T) {
	t.Helper()
	foreign(t)
	shell(t, `
		for n in wrenn-ns-abc wrenn-ns-07 wrenn-ns-0 mine; do ip netns add $n; done
		ip link add wrenn-vethx type veth peer name wrenn-vethy
		ip link add wrenn-veth-7 type veth peer name wrenn-veth07
		ip link set wrenn-vethx addrgenmode none up
		ip link set wrenn-vethy addrgenmode none up
		ip addr add 203.0.113.9/24 dev wrenn-vethx
		ip route add 10.11.9.9/32 dev wrenn-vethx proto 99
		ip route add 10.11.0.9/32 dev wrenn-vethx proto 99 metric 7
		ip route add 10.11.0.0/24 dev wrenn-vethx proto 217
		ip route add 10.11.0.8/32 dev wrenn-vethx proto 217 table 7
		ip link add vpeer netns mine type veth peer name tap0 netns mine
		ip -n mine link set vpeer addrgenmode none up
		ip -n mine link set tap0 addrgenmode none up
		ip -n mine addr add 169.254.0.22/30 dev tap0
		ip -n mine route add 10.11.0.8/32 dev vpeer proto 217
		ip netns exec mine iptables -w -N WRENN-FORWARD
		ip netns exec mine iptables -w -A FORWARD -i tap0 -j WRENN-FORWARD`)
	t.Cleanup(func() {
		shell(t, `
			ip link del wrenn-vethx
			ip link del wrenn-veth-7
			for n in wrenn-ns-abc wrenn-ns-07 wrenn-ns-0 mine; do ip netns del $n; done`)
	})
	settled(t)
}

// settled waits until the kernel has noticed that links which are up have a carrier, which it does a moment
// after.
func settled(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		return !strings.Contains(shell(t, "ip -o link; ip netns exec mine ip -o link 2>/dev/null || true"), "NO-CARRIER")
	}, patience, 5*time.Millisecond)
}

// TestN03_WhatOthersMadeSurvivesToTheByte goes through everything that a host does for networks, with slots
// whose names and addresses are close to the others'.
func TestN03_WhatOthersMadeSurvivesToTheByte(t *testing.T) {
	h := newHost(t)
	foreignObjects(t)
	before := others(t)
	require.NoError(t, h.Setup(t.Context()))
	setUp := others(t)
	for act, do := range map[string]func() error{
		"create and remove": func() error {
			for _, slot := range []Slot{7, 8, 9} {
				if err := h.CreateNetwork(t.Context(), slot, Policy{AllowInternet: true}); err != nil {
					return err
				}
				if err := h.SetPolicy(t.Context(), slot, Policy{}); err != nil {
					return err
				}
				if err := h.RemoveNetwork(t.Context(), slot); err != nil {
					return err
				}
			}
			return nil
		},
		"ready, handed over and removed": func() error {
			if err := h.CreateReady(t.Context(), 7); err != nil {
				return err
			}
			if err := h.HandOver(t.Context(), 7, Policy{}); err != nil {
				return err
			}
			return h.RemoveNetwork(t.Context(), 7)
		},
		"remove what is not there": func() error { return h.RemoveNetwork(t.Context(), 9) },
		"clean up": func() error {
			for _, slot := range []Slot{7, 8, 9} {
				if err := h.CreateNetwork(t.Context(), slot, Policy{}); err != nil {
					return err
				}
			}
			_, err := h.CleanupStaleNamespaces(t.Context(), newAllocator(t, MaxSlot))
			return err
		},
		"look": func() error { _, err := Inventory(t.Context()); return err },
	} {
		t.Run(act, func(t *testing.T) {
			require.NoError(t, do())
			assert.Equal(t, setUp, others(t))
		})
	}
	require.NoError(t, h.Teardown(t.Context()))
	assert.Equal(t, before, others(t))
}

func TestN06_InventoryListsOursAndNothingElse(t *testing.T) {
	h := newHost(t)
	foreignObjects(t)
	nothing, err := Inventory(t.Context())
	require.NoError(t, err)
	require.Empty(t, nothing)

	require.NoError(t, h.Setup(t.Context()))
	t.Cleanup(func() { require.NoError(t, h.Teardown(backgroundOf(t))) })
	require.NoError(t, h.CreateNetwork(t.Context(), 7, Policy{}))
	require.NoError(t, h.CreateReady(t.Context(), 8))
	shell(t, "ip route add 10.11.0.77/32 dev wrenn-vethx proto 217; touch /run/netns/wrenn-ns-78")
	for range 3 {
		shell(t, "mount --bind /run/netns/wrenn-ns-7 /run/netns/wrenn-ns-7")
	}
	found, err := Inventory(t.Context())
	require.NoError(t, err)
	var got []string
	for _, o := range found {
		if o.Slot != 0 {
			got = append(got, o.Slot.Netns()+" "+o.Kind+" "+o.Name)
		}
	}
	assert.ElementsMatch(t, []string{
		"wrenn-ns-7 netns wrenn-ns-7", "wrenn-ns-7 veth wrenn-veth7", "wrenn-ns-7 route 10.11.0.7", "wrenn-ns-7 tap tap0",
		"wrenn-ns-7 nft table wrenn-nat", "wrenn-ns-7 nft table wrenn-egress", "wrenn-ns-7 mount /run/netns/wrenn-ns-7",
		"wrenn-ns-8 netns wrenn-ns-8", "wrenn-ns-8 veth wrenn-veth8", "wrenn-ns-8 route 10.11.0.8", "wrenn-ns-8 tap tap0",
		"wrenn-ns-8 nft table wrenn-nat",
		"wrenn-ns-77 route 10.11.0.77", "wrenn-ns-78 netns wrenn-ns-78",
	}, got)
	assert.Len(t, found, len(got)+len(h.chains()))

	cleared, err := h.CleanupStaleNamespaces(t.Context(), newAllocator(t, MaxSlot))
	require.NoError(t, err, "a second mount on a namespace's name")
	assert.Equal(t, []Slot{7, 8, 77, 78}, cleared)
}
