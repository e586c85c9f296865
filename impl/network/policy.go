package network

import (
	"net/netip"
	"slices"

	"wrenn/impl/egress"
)

// Policy says what a sandbox may reach by itself. The zero value is nothing at all.
type Policy = egress.Policy

// disjoint returns the prefixes in order without those that lie within another. Two prefixes never
// overlap in any other way, and a kernel set of ranges accepts no overlap.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		sorted[i] = p.Masked()
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	var kept []netip.Prefix
	for _, p := range sorted {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}
