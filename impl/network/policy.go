package network

import (
	"fmt"
	"net/netip"
	"slices"
)

// Policy says what a sandbox may reach by itself. The zero value is nothing at all. The order is:
// Allow, then Deny, then the private ranges (denied), then AllowInternet.
//
// Whatever the policy, a sandbox never reaches other sandboxes, the host or link-local addresses
// (cloud metadata): the host's own rules stop that. Answers to connections that the host opened to
// the guest always pass.
type Policy struct {
	// AllowInternet opens all public IPv4 addresses, and port 53 of the host's resolvers.
	AllowInternet bool
	// Allow opens IPv4 ranges whatever the other fields say, private ones included.
	Allow []netip.Prefix
	// Deny closes IPv4 ranges that AllowInternet would open.
	Deny []netip.Prefix
}

// privateRanges are what no sandbox reaches unless its policy allows it: RFC 1122 this network and
// loopback, RFC 1918 private use, RFC 6598 carrier NAT, RFC 3927 link-local, RFC 6890 protocol
// assignments, RFC 2544 benchmarking, RFC 5771 multicast, RFC 1112 reserved with the broadcast address.
var privateRanges = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

// Check returns an error that names the first prefix that is not IPv4.
func (p Policy) Check() error {
	for _, list := range []struct {
		name     string
		prefixes []netip.Prefix
	}{{"allow", p.Allow}, {"deny", p.Deny}} {
		for _, prefix := range list.prefixes {
			if !prefix.IsValid() || !prefix.Addr().Is4() {
				return fmt.Errorf("network policy: %s: %s is not an IPv4 range", list.name, prefix)
			}
		}
	}
	return nil
}

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
