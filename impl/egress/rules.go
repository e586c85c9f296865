package egress

import (
	"fmt"
	"net/netip"
	"slices"
)

// MaxEntries is the most entries that each list of Rules has. Every range costs 48 bytes in the message
// that puts a list into the kernel, of which one attribute holds 65,535 (netlink's length has 16 bits);
// 256 of the longest names fill the 64 KiB that a caller's metadata may have, too.
const MaxEntries = 256

// Rules are what a caller writes; the names of the fields are those of the public API, which errors
// speak of. The zero value means the policy that opens nothing.
type Rules struct {
	// AllowInternet false is the same as an entry 0.0.0.0/0 in DenyOut.
	AllowInternet bool `json:"allowInternet"`
	// AllowOut has IPv4 addresses, IPv4 ranges, names and wildcards.
	AllowOut []string `json:"allowOut,omitempty"`
	// DenyOut has addresses and ranges. Those of IPv6 are taken and change nothing: no guest has IPv6.
	DenyOut []string `json:"denyOut,omitempty"`
}

// InvalidError says which field of Rules cannot be taken, and why.
type InvalidError struct{ Field, Reason string }

// Error is the field and the reason.
func (e *InvalidError) Error() string { return e.Field + ": " + e.Reason }

// Clone returns a copy that shares nothing.
func (r Rules) Clone() Rules {
	r.AllowOut, r.DenyOut = slices.Clone(r.AllowOut), slices.Clone(r.DenyOut)
	return r
}

// Equal reports whether both were written alike.
func (r Rules) Equal(o Rules) bool {
	return r.AllowInternet == o.AllowInternet && slices.Equal(r.AllowOut, o.AllowOut) && slices.Equal(r.DenyOut, o.DenyOut)
}

// Policy returns what the rules mean, or an InvalidError. An entry of AllowOut that lies in a private
// range opens it; one that is wider, such as 0.0.0.0/0, opens its public addresses alone. Names are
// refused beside access to the rest of the internet, as E2B does: there they would open nothing, and
// who wrote them meant otherwise.
func (r Rules) Policy() (Policy, error) {
	p := Policy{AllowInternet: r.AllowInternet}
	for field, list := range map[string][]string{"allowOut": r.AllowOut, "denyOut": r.DenyOut} {
		if len(list) > MaxEntries {
			return Policy{}, &InvalidError{field, fmt.Sprintf("it has %d entries, at most %d are allowed", len(list), MaxEntries)}
		}
	}
	closed := !r.AllowInternet
	for i, entry := range r.DenyOut {
		prefix, ok := parseRange(entry)
		if !ok {
			return Policy{}, invalid("denyOut", i, entry, "it must be an IP address or a range such as 192.0.2.0/24; names can only be allowed")
		}
		if prefix.Addr().Is4() {
			p.Deny = append(p.Deny, prefix)
			closed = closed || prefix.Bits() == 0
		}
	}
	for i, entry := range r.AllowOut {
		if err := p.allow(entry); err != nil {
			return Policy{}, invalid("allowOut", i, entry, err.Error())
		}
	}
	if len(p.Domains) > 0 && !closed {
		return Policy{}, &InvalidError{"allowOut", "names need all other traffic denied: add 0.0.0.0/0 to denyOut, or set allow_internet_access to false"}
	}
	return p, nil
}

func (p *Policy) allow(entry string) error {
	prefix, ok := parseRange(entry)
	switch {
	case ok && !prefix.Addr().Is4():
		return fmt.Errorf("sandboxes have no IPv6, so it cannot be opened: leave it out")
	case ok:
		p.Allow = append(p.Allow, public(prefix)...)
		return nil
	}
	domain, err := ParseDomain(entry)
	if err != nil {
		return err
	}
	if !slices.Contains(p.Domains, domain) {
		p.Domains = append(p.Domains, domain)
	}
	return nil
}

// parseRange reads an address or a range. The bits of a range that its length leaves out may be set.
func parseRange(s string) (netip.Prefix, bool) {
	if prefix, err := netip.ParsePrefix(s); err == nil && !prefix.Addr().Is4In6() {
		return prefix.Masked(), true
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

// invalid shortens hostile input: an error message is no place for a megabyte of it.
func invalid(field string, index int, entry, reason string) error {
	return &InvalidError{fmt.Sprintf("%s[%d] %.80q", field, index, entry), reason}
}
