package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"wrenn/impl/network"
	"wrenn/impl/sandbox"
)

// networkPart is the real sandbox.Network.
type networkPart struct {
	host  *network.Host
	slots *network.Allocator
	// clean is set once nothing of an earlier life is left; until then a slot may hold leftovers.
	clean atomic.Bool
}

func (n *networkPart) Reserve() (int, error) {
	slot, err := n.slots.Acquire()
	if errors.Is(err, network.ErrNoFreeSlot) {
		return 0, fmt.Errorf("%w: all %d are in use", sandbox.ErrNoSlot, network.MaxSlot)
	}
	return int(slot), err
}

// Claim refuses a slot without a network: a machine cut off from the world is nothing to take over.
func (n *networkPart) Claim(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	s := network.Slot(slot)
	if err := n.slots.Claim(s); err != nil {
		return err
	}
	if err := n.host.AdoptPolicy(ctx, s, policy); err != nil {
		return errors.Join(err, n.slots.Release(s))
	}
	return nil
}

// Free panics on a slot that is not held: two sandboxes would believe that it is theirs.
func (n *networkPart) Free(slot int) {
	if err := n.slots.Release(network.Slot(slot)); err != nil {
		panic(err)
	}
}

func (n *networkPart) Create(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	if !n.clean.Load() {
		if err := n.host.RemoveNetwork(ctx, network.Slot(slot)); err != nil {
			return fmt.Errorf("clear what an earlier agent left: %w", err)
		}
	}
	return n.host.CreateNetwork(ctx, network.Slot(slot), policy)
}

func (n *networkPart) SetPolicy(ctx context.Context, slot int, policy sandbox.NetworkPolicy) error {
	return n.host.SetPolicy(ctx, network.Slot(slot), policy)
}

func (n *networkPart) Remove(ctx context.Context, slot int) error {
	return n.host.RemoveNetwork(ctx, network.Slot(slot))
}

func (n *networkPart) Address(slot int) netip.Addr { return network.Slot(slot).HostIP() }

// Reclaim claims each leftover slot while it removes it, so that no create can get it meanwhile.
func (n *networkPart) Reclaim(ctx context.Context) ([]int, error) {
	owned := func(s network.Slot) bool { return n.slots.Claim(s) != nil }
	removed, err := n.host.CleanupStaleNamespaces(ctx, owned)
	slots := make([]int, 0, len(removed))
	for _, s := range removed {
		slots = append(slots, int(s))
		err = errors.Join(err, n.slots.Release(s))
	}
	if err == nil {
		n.clean.Store(true)
	}
	return slots, err
}
