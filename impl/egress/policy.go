// Package egress says what a sandbox may reach: the rules as a caller writes them, the policy that they
// mean, and how a policy decides on an address or a name. It touches nothing; package network makes the
// kernel do the same.
package egress

import (
	"fmt"
	"net/netip"
	"slices"
)

// Policy says what a sandbox may reach by itself. The zero value is nothing at all. The order is:
// Allow and Domains, then Deny, then the private ranges (denied), then AllowInternet.
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
	// Domains opens the public addresses that these names resolve to, for as long as the answers say.
	// Each is a name as ParseDomain returns it. With any, the sandbox asks for names at a forwarder of
	// its own, which answers for these names alone.
	Domains []string
}

// privateRanges are what no sandbox reaches unless its policy allows it: RFC 1122 this network and
// loopback, RFC 1918 private use, RFC 6598 carrier NAT, RFC 3927 link-local, RFC 6890 protocol
// assignments, RFC 2544 benchmarking, RFC 5771 multicast, RFC 1112 reserved with the broadcast address.
// The ranges of the sandboxes themselves lie in 10.0.0.0/8.
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

// PrivateRanges returns the ranges that only an entry of Allow opens, in order.
func PrivateRanges() []netip.Prefix { return slices.Clone(privateRanges) }

// Private reports whether addr lies in one of PrivateRanges, or is no IPv4 address at all.
func Private(addr netip.Addr) bool { return !addr.Is4() || within(privateRanges, addr) }

// Check returns an error that names the first prefix that is not IPv4, or the first name that
// ParseDomain would not return.
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
	for _, d := range p.Domains {
		if parsed, err := ParseDomain(d); err != nil || parsed != d {
			return fmt.Errorf("network policy: domains: %.80q is not a name in its plain form", d)
		}
	}
	return nil
}

// Allows decides on an IPv4 address; named says that a name of Domains has been resolved to it, and that
// answer still holds. What the host's own rules stop on top of every policy is not its concern, nor are
// the resolvers that AllowInternet opens on port 53.
func (p Policy) Allows(addr netip.Addr, named bool) bool {
	switch {
	case within(p.Allow, addr), named && len(p.Domains) > 0 && !Private(addr):
		return true
	case within(p.Deny, addr), Private(addr):
		return false
	}
	return p.AllowInternet
}

// AllowsName reports whether an entry of Domains matches the name, which may end with a dot and be in
// upper case.
func (p Policy) AllowsName(name string) bool {
	return slices.ContainsFunc(p.Domains, func(d string) bool { return MatchDomain(d, name) })
}

func within(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// public returns the parts of an IPv4 range that lie in no private range, or the range itself when it
// lies wholly in one: who names a private range means it, who names everything does not.
func public(p netip.Prefix) []netip.Prefix {
	for _, private := range privateRanges {
		if !private.Overlaps(p) {
			continue
		}
		if private.Bits() <= p.Bits() {
			return []netip.Prefix{p}
		}
		low, high := halves(p)
		return append(publicPart(low), publicPart(high)...)
	}
	return []netip.Prefix{p}
}

// publicPart is public for a part of a wider range, of which a private part is left out.
func publicPart(p netip.Prefix) []netip.Prefix {
	for _, private := range privateRanges {
		if private.Bits() <= p.Bits() && private.Overlaps(p) {
			return nil
		}
	}
	return public(p)
}

// halves splits a range that is larger than one address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits() + 1
	first := p.Masked().Addr().As4()
	second := first
	second[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	return netip.PrefixFrom(netip.AddrFrom4(first), bits), netip.PrefixFrom(netip.AddrFrom4(second), bits)
}
