package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns"
)

// batch is how many stale networks are taken away at a time. The kernel ends all namespaces that it finds
// waiting in one go, most of which is waiting for packets under way, so that 16 take little more than one; but
// it holds the lock that creates need for as long. Measured: 4 at a time take 10 ms each, 16 take 3.5 and 64
// take 3, while creates that run beside take 10, 20 and 40 ms (8 on an idle host).
const batch = 16

// drain is how long the links of a batch's namespaces may take to follow them; some 50 ms is usual. A process
// that lives in a namespace keeps it; then the links are removed by hand.
const drain = 500 * time.Millisecond

// Claims keeps the books of slots while stale networks are removed: an Allocator.
type Claims interface {
	// Claim is an error when the slot belongs to somebody; until Release nobody else gets it.
	Claim(slot Slot) error
	Release(slot Slot) error
}

// CleanupStaleNamespaces removes the networks, whole or in part, whose slots can be claimed: what a crash
// left. It returns the slots that it cleared, in order, and joins the errors of the others, which it keeps
// claimed. It may run beside CreateNetwork, as long as the slots being created cannot be claimed.
//
// Ours are namespaces and veths whose names are exactly those of a slot, and routes with our protocol
// number to a slot's host address; everything else is left alone.
func (h *Host) CleanupStaleNamespaces(ctx context.Context, claims Claims) ([]Slot, error) {
	slots, err := existing()
	if err != nil {
		return nil, fmt.Errorf("reclaiming networks: %w", err)
	}
	var cleared []Slot
	var errs []error
	for some := range slices.Chunk(slots, batch) {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		mine := slices.DeleteFunc(some, func(s Slot) bool { return claims.Claim(s) != nil })
		h.removeNamespaces(ctx, mine)
		for _, slot := range mine {
			// What is left, which mostly is nothing.
			if err := h.RemoveNetwork(ctx, slot); err != nil {
				errs = append(errs, err)
				continue
			}
			if err := claims.Release(slot); err != nil {
				errs = append(errs, err)
			}
			cleared = append(cleared, slot)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return cleared, fmt.Errorf("reclaiming networks: %w", err)
	}
	return cleared, nil
}

// removeNamespaces takes the names of many namespaces away and waits for the kernel to end them, which takes
// the links with them, and the routes with those. Whatever does not work here RemoveNetwork finds and says.
func (h *Host) removeNamespaces(ctx context.Context, slots []Slot) {
	var ending []Slot
	for _, slot := range slots {
		ns, err := netns.Open(slot.Netns())
		if err != nil {
			continue // there is none
		}
		if err := errors.Join(ns.Close(), netns.Delete(slot.Netns())); err == nil {
			ending = append(ending, slot)
		}
	}
	deadline := time.Now().Add(drain)
	for _, slot := range ending {
		for time.Now().Before(deadline) && ctx.Err() == nil {
			if _, err := netlink.LinkByName(slot.Veth()); isGone(err) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// existing returns the slots that have any part of a network, in order.
func existing() ([]Slot, error) {
	var slots []Slot
	add := func(s Slot, ok bool) {
		if ok {
			slots = append(slots, s)
		}
	}
	names, err := netns.List()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		add(ParseNetns(n))
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	for _, l := range links {
		if l.Type() == "veth" {
			add(ParseVeth(l.Attrs().Name))
		}
	}
	routes, err := ourRoutes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		add(slotOf(r))
	}
	slices.Sort(slots)
	return slices.Compact(slots), nil
}

// ourRoutes are those of the main table that have our protocol number, to whatever destination.
func ourRoutes() ([]netlink.Route, error) {
	ours := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, ours, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return routes, nil
}

// slotOf is the slot to whose host address, and nothing else, a route leads.
func slotOf(r netlink.Route) (Slot, bool) {
	p, ok := prefixOf(r.Dst)
	if !ok || !p.IsSingleIP() {
		return 0, false
	}
	return ParseHostIP(p.Addr())
}

// whole repeats a listing that the kernel calls inconsistent because something was added or removed
// meanwhile. Beside steady creates none may ever be consistent; then the last one does, for what is
// being changed is not a leftover.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 5
	for range tries - 1 {
		found, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	found, err := list()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil
	}
	return found, err
}
