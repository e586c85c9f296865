package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/netns"
	"wrenn/impl/step"
)

func prefixes(all ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range all {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// egressOf is the egress table in a slot's namespace, spelled out.
func egressOf(t *testing.T, slot Slot) []string {
	t.Helper()
	ns, err := netns.Open(slot.Netns())
	require.NoError(t, err)
	defer ns.Close()
	var all []string
	require.NoError(t, ns.Do(func() error {
		conn, err := nftables.New()
		require.NoError(t, err)
		chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
		require.NoError(t, err)
		slices.SortFunc(chains, func(a, b *nftables.Chain) int { return strings.Compare(a.Name, b.Name) })
		for _, c := range chains {
			if c.Table.Name != egressTable {
				continue
			}
			rules, err := conn.GetRules(c.Table, c)
			require.NoError(t, err)
			if c.Hooknum == nil {
				all = append(all, c.Name) // the seal
				continue
			}
			policy := "none"
			if c.Policy != nil {
				policy = fmt.Sprint(*c.Policy)
			}
			all = append(all, fmt.Sprintf("%s %v %v policy %s", c.Name, *c.Hooknum, *c.Priority, policy))
			for _, r := range rules {
				line := c.Name
				for _, e := range r.Exprs {
					line += fmt.Sprintf(" %T%+v", e, e)
				}
				all = append(all, line)
			}
		}
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable}
		sets, err := conn.GetSets(table)
		require.NoError(t, err)
		for _, s := range sets {
			elements, err := conn.GetSetElements(s)
			require.NoError(t, err)
			all = append(all, fmt.Sprint(s.Name, elements))
		}
		return nil
	}))
	return all
}

func TestN09_AReadyNetworkIsClosedUntilItIsHandedOver(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	require.NoError(t, h.CreateReady(t.Context(), 80))
	t.Cleanup(func() { require.NoError(t, h.RemoveNetwork(backgroundOf(t), 80)) })
	guest := newGuest(t, 80)
	toGuest := Slot(80).HostIP().String() + ":" + echoPort
	for _, addr := range append([]string{publicServer, resolverIP, hostUplink, Slot(80).VethIP().String()}, forbidden...) {
		_, err := echo(guest, addr+":"+echoPort, refusal)
		assert.Error(t, err, "from a ready network to %s", addr)
	}
	_, err := echo(nil, toGuest, refusal)
	require.Error(t, err, "into a ready network")

	require.NoError(t, h.HandOver(t.Context(), 80, Policy{AllowInternet: true}))
	assertReaches(t, guest, publicServer, hostUplink)
	_, err = echo(nil, toGuest, patience)
	require.NoError(t, err)
	for _, addr := range forbidden {
		_, err := echo(guest, addr+":"+echoPort, refusal)
		assert.Error(t, err, "to %s", addr)
	}

	// It is the same as if it had been made for this policy.
	for i, policy := range []Policy{{}, {AllowInternet: true, Allow: prefixes("10.99.0.0/16"), Deny: prefixes("198.51.100.0/24")}} {
		cold, ready := Slot(81), Slot(90+i)
		require.NoError(t, h.CreateNetwork(t.Context(), cold, policy))
		require.NoError(t, h.CreateReady(t.Context(), ready))
		require.NoError(t, h.HandOver(t.Context(), ready, policy))
		assert.Equal(t, egressOf(t, cold), egressOf(t, ready))
		require.NoError(t, h.SetPolicy(t.Context(), ready, Policy{}), "and can be changed later")
		require.NoError(t, h.RemoveNetwork(t.Context(), cold))
		require.NoError(t, h.RemoveNetwork(t.Context(), ready))
	}
}

func TestN04_AnErrorAtAnyStepOfAReadyNetworkLeavesNothing(t *testing.T) {
	h := setUp(t)
	before := census(t)
	for i, name := range step.Names(h.ReadySteps(82)) {
		steps := h.ReadySteps(82)
		do := steps[i].Do
		steps[i].Do = func(ctx context.Context) error { return fmt.Errorf("boom: %w", do(ctx)) }
		_, err := step.Run(t.Context(), ReadyAct, steps)
		require.ErrorContains(t, err, ReadyAct+": step "+name)
		assert.Equal(t, before, census(t), "after %s", name)
	}
	for i, name := range step.Names(h.HandOverSteps(82, Policy{})) {
		require.NoError(t, h.CreateReady(t.Context(), 82))
		steps := h.HandOverSteps(82, Policy{AllowInternet: true})
		do := steps[i].Do
		steps[i].Do = func(ctx context.Context) error { return fmt.Errorf("boom: %w", do(ctx)) }
		_, err := step.Run(t.Context(), HandOverAct, steps)
		require.ErrorContains(t, err, HandOverAct+": step "+name)
		require.NoError(t, h.RemoveNetwork(t.Context(), 82))
		assert.Equal(t, before, census(t), "after %s", name)
	}
	require.ErrorIs(t, h.CreateReady(t.Context(), 32768), ErrInvalidSlot)
	require.ErrorIs(t, h.HandOver(t.Context(), 0, Policy{}), ErrInvalidSlot)
}

// newPool starts a pool on a real host and waits until it is full.
func newPool(t *testing.T, h *Host, ready int) *Pool {
	t.Helper()
	p, err := NewPool(PoolConfig{Maker: h, Slots: newAllocator(t, MaxSlot), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Ready: ready})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close(backgroundOf(t))) })
	p.Start()
	full(t, p, ready)
	return p
}

func full(t *testing.T, p *Pool, ready int) {
	t.Helper()
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.ready) == ready && p.ready[ready-1].isMade()
	}, patience, time.Millisecond)
}

func TestN04_ARealReadyNetworkThatSomebodyBrokeIsReplaced(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	before := census(t)
	p := newPool(t, h, 3)
	for _, damage := range []string{
		"ip link del " + Slot(1).Veth(),
		"ip route del " + Slot(2).HostIP().String(),
		"ip netns del " + Slot(3).Netns(),
	} {
		slot, err := p.Reserve()
		require.NoError(t, err)
		shell(t, damage)
		require.NoError(t, p.Create(t.Context(), slot, Policy{AllowInternet: true}), damage)
		t.Run(damage, func(t *testing.T) { assertReaches(t, newGuest(t, slot), publicServer, hostUplink) })
		require.NoError(t, p.Remove(t.Context(), slot))
		require.NoError(t, p.Free(slot))
	}
	require.NoError(t, p.Close(t.Context()))
	assert.Equal(t, before, census(t))
}

func TestN06_ThePoolOfACrashedAgentIsReclaimed(t *testing.T) {
	h := setUp(t)
	before := census(t)
	crashed := newPool(t, h, 5)
	require.NotEqual(t, before, census(t))
	// A next one knows nothing of it, and its books are empty.
	got, err := h.CleanupStaleNamespaces(t.Context(), newAllocator(t, MaxSlot))
	require.NoError(t, err)
	assert.Equal(t, []Slot{1, 2, 3, 4, 5}, got)
	assert.Equal(t, before, census(t))
	require.NoError(t, crashed.Close(t.Context()))
}

func TestN06_TheReadyNetworksOfALivingPoolAreNotStale(t *testing.T) {
	h := setUp(t)
	p := newPool(t, h, 3)
	settled(t)
	before := census(t)
	got, err := h.CleanupStaleNamespaces(t.Context(), p.cfg.Slots)
	require.NoError(t, err)
	assert.Empty(t, got)
	assert.Equal(t, before, census(t))
}
