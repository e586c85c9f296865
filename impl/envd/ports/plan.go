package ports

import (
	"net/netip"
	"slices"
)

// The loopback addresses that are forwarded to. Others of 127.0.0.0/8 are chosen on purpose, such as that of
// a local resolver, and stay where they are.
var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// wanted is what a scan asks for.
type wanted struct {
	// forwards are the addresses to listen on, each with where to connect to, IPv4 first.
	forwards map[netip.AddrPort][]netip.AddrPort
	// order are the keys of forwards by port.
	order []netip.AddrPort
	// others are the listeners that are not on loopback.
	others map[netip.AddrPort]bool
}

// plan says what to forward, given the listeners that are not forwards, the guest's addresses, and the ports
// that are never forwarded.
func plan(all []listener, addrs []netip.Addr, own []uint16) wanted {
	w := wanted{forwards: map[netip.AddrPort][]netip.AddrPort{}, others: map[netip.AddrPort]bool{}}
	targets := map[uint16][]netip.AddrPort{}
	for _, l := range all {
		at := netip.AddrPortFrom(l.at.Addr().Unmap(), l.at.Port())
		switch {
		case at.Addr() == loopback4 || at.Addr() == loopback6:
			if !slices.Contains(own, at.Port()) && !slices.Contains(targets[at.Port()], at) {
				targets[at.Port()] = append(targets[at.Port()], at)
			}
		case !at.Addr().IsLoopback():
			w.others[at] = true
		}
	}
	for port, to := range targets {
		slices.SortFunc(to, netip.AddrPort.Compare)
		for _, addr := range addrs {
			at := netip.AddrPortFrom(addr, port)
			if !w.taken(at) {
				w.forwards[at] = to
				w.order = append(w.order, at)
			}
		}
	}
	slices.SortFunc(w.order, func(a, b netip.AddrPort) int {
		if a.Port() != b.Port() {
			return int(a.Port()) - int(b.Port())
		}
		return a.Addr().Compare(b.Addr())
	})
	return w
}

// taken says whether a program listens where at would: on that address or on its family's wildcard. Whether
// an IPv6 wildcard takes IPv4 as well depends on its socket; the attempt to listen tells.
func (w wanted) taken(at netip.AddrPort) bool {
	wildcard := netip.IPv6Unspecified()
	if at.Addr().Is4() {
		wildcard = netip.IPv4Unspecified()
	}
	return w.others[at] || w.others[netip.AddrPortFrom(wildcard, at.Port())]
}
