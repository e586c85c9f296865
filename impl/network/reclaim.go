package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns"
)

// reclaimers is how many networks CleanupStaleNamespaces removes at a time. The kernel does most of the work under one
// lock; more than a few only wait for it, and keep creates waiting too.
const reclaimers = 4

// CleanupStaleNamespaces removes the networks, whole or in part, that no living sandbox owns: what a crash left.
// It returns the slots that it cleared, in order, and joins the errors of the others. It may run
// beside CreateNetwork as long as owned, which is asked concurrently and just before each removal, is true
// for the slots being created.
//
// Ours are namespaces and veths whose names are exactly those of a slot, and routes with our protocol
// number to a slot's host address; everything else is left alone.
func (h *Host) CleanupStaleNamespaces(ctx context.Context, owned func(Slot) bool) ([]Slot, error) {
	slots, err := existing()
	if err != nil {
		return nil, fmt.Errorf("reclaiming networks: %w", err)
	}
	// One element per slot, so that no lock is needed.
	cleared, errs := make([]bool, len(slots)), make([]error, len(slots))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range reclaimers {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(slots)); i = next.Add(1) - 1 {
				if owned(slots[i]) {
					continue
				}
				errs[i] = h.RemoveNetwork(ctx, slots[i])
				cleared[i] = errs[i] == nil
			}
		})
	}
	workers.Wait()
	var reclaimed []Slot
	for i, slot := range slots {
		if cleared[i] {
			reclaimed = append(reclaimed, slot)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return reclaimed, fmt.Errorf("reclaiming networks: %w", err)
	}
	return reclaimed, nil
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
	ours := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, ours, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p.IsSingleIP() {
			add(ParseHostIP(p.Addr()))
		}
	}
	slices.Sort(slots)
	return slices.Compact(slots), nil
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
