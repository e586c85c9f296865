package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// networkPart is the real sandbox.Network: the pool's networks on a host that may hold leftovers.
type networkPart struct {
	maker     *careful
	pool      *network.Pool
	leftovers *leftovers
}

// careful is a network.Host on which slots may hold what an earlier agent left: it clears a slot before it
// makes a network there, until nothing is left at all.
type careful struct {
	*network.Host
	clean atomic.Bool
}

func newNetworkPart(cfg Config, host *network.Host) (*networkPart, error) {
	slots, err := network.NewAllocator(network.MaxSlot)
	if err != nil {
		return nil, err
	}
	n := &networkPart{
		maker: &careful{Host: host}, leftovers: &leftovers{Allocator: slots, claims: map[network.Slot]bool{}},
	}
	n.pool, err = network.NewPool(network.PoolConfig{
		Maker: n.maker, Slots: slots, Logger: cfg.Logger, Ready: cfg.ReadyNetworks, Limit: cfg.Slots,
	})
	return n, err
}

func (c *careful) CreateNetwork(ctx context.Context, slot network.Slot, policy network.Policy) error {
	if err := c.clear(ctx, slot); err != nil {
		return err
	}
	return c.Host.CreateNetwork(ctx, slot, policy)
}

func (c *careful) CreateReady(ctx context.Context, slot network.Slot) error {
	if err := c.clear(ctx, slot); err != nil {
		return err
	}
	return c.Host.CreateReady(ctx, slot)
}

func (c *careful) clear(ctx context.Context, slot network.Slot) error {
	if c.clean.Load() {
		return nil
	}
	if err := c.RemoveNetwork(ctx, slot); err != nil {
		return fmt.Errorf("clear what an earlier agent left: %w", err)
	}
	return nil
}

func (n *networkPart) Reserve() (int, error) {
	slot, err := n.pool.Reserve()
	if errors.Is(err, network.ErrNoFreeSlot) {
		return 0, fmt.Errorf("%w: %w", sandbox.ErrNoSlot, err)
	}
	return int(slot), err
}

// Claim refuses a slot without a network: a machine cut off from the world is nothing to take over.
func (n *networkPart) Claim(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	s := network.Slot(slot)
	if err := n.pool.Claim(s); err != nil {
		return err
	}
	if err := n.maker.AdoptPolicy(ctx, s, policy); err != nil {
		return errors.Join(err, n.pool.Free(s))
	}
	return nil
}

// Free panics on a slot that is not held: two sandboxes would believe that it is theirs.
func (n *networkPart) Free(slot int) {
	if err := n.pool.Free(network.Slot(slot)); err != nil {
		panic(err)
	}
}

func (n *networkPart) Create(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	return n.pool.Create(ctx, network.Slot(slot), policy)
}

func (n *networkPart) SetPolicy(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	return n.maker.SetPolicy(ctx, network.Slot(slot), policy)
}

func (n *networkPart) Remove(ctx context.Context, slot int) error {
	return n.pool.Remove(ctx, network.Slot(slot))
}

func (n *networkPart) Address(slot int) netip.Addr { return network.Slot(slot).HostIP() }

// Ready lists the slots whose networks wait for a sandbox.
func (n *networkPart) Ready() []int {
	var slots []int
	for _, s := range n.pool.Ready() {
		slots = append(slots, int(s))
	}
	return slots
}

// Reclaim claims each leftover slot while it removes it, so that no create can get it meanwhile.
func (n *networkPart) Reclaim(ctx context.Context) ([]int, error) {
	n.leftovers.turn.Lock()
	defer n.leftovers.turn.Unlock()
	removed, err := n.maker.CleanupStaleNamespaces(ctx, n.leftovers)
	slots := make([]int, 0, len(removed))
	for _, s := range removed {
		slots = append(slots, int(s))
	}
	if err == nil {
		n.maker.clean.Store(true)
	}
	return slots, err
}

// leftovers claims slots of which something is left. What cannot be removed stays claimed, so that no
// sandbox meets it, and can be tried again.
type leftovers struct {
	*network.Allocator
	// turn is whose reclaim it is; the claims are its.
	turn   sync.Mutex
	claims map[network.Slot]bool
}

// Claim is Allocator.Claim, or nil for what an earlier reclaim could not remove.
func (l *leftovers) Claim(slot network.Slot) error {
	if l.claims[slot] {
		return nil
	}
	if err := l.Allocator.Claim(slot); err != nil {
		return err
	}
	l.claims[slot] = true
	return nil
}

// Release is Allocator.Release.
func (l *leftovers) Release(slot network.Slot) error {
	delete(l.claims, slot)
	return l.Allocator.Release(slot)
}
