package network

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/egress"
	"wrenn/impl/netns"
	"wrenn/impl/network/nameserver"
)

// The sets of the egress table that hold the addresses of names.
const (
	openSet  = "open"
	knownSet = "known"
)

// maxAddresses is how many addresses of names one sandbox may hold at a time. A set of them is written
// by one netlink attribute, which has at most 65,535 bytes; an address takes 28.
const maxAddresses = 1024

// lifetimes bound for how long an answer opens an address.
type lifetimes struct {
	// floor is for answers that may not be kept at all: between the answer and the connection a program
	// may take its time, and many keep addresses for longer than they are told.
	floor time.Duration
	// ceiling is also the longest time to live that the guest is told.
	ceiling time.Duration
	// grace is added, for a guest that connects in the last second of an answer.
	grace time.Duration
}

var usualLifetimes = lifetimes{floor: time.Minute, ceiling: time.Hour, grace: 10 * time.Second}

// names is what belongs to a network whose policy has domains: the forwarder in its namespace, and the
// addresses that it has opened.
type names struct {
	site      *site
	ns        *netns.Handle // keeps the very namespace, whatever becomes of its name
	server    *nameserver.Server
	lifetimes lifetimes

	mu     sync.Mutex // no two may write the egress table at a time
	policy Policy
	known  map[netip.Addr]*opened
}

// opened is an address that names resolved to. It is remembered beyond its time, as long as there is
// room, since connections may be open to it when the policy changes.
type opened struct {
	names []string
	until time.Time
}

// openNames starts a forwarder in the slot's namespace. Nothing leads to it yet.
func (h *Host) openNames(s *site, policy Policy) (*names, error) {
	ns, err := netns.Open(s.slot.Netns())
	if err != nil {
		return nil, err
	}
	n := &names{site: s, ns: ns, lifetimes: h.lifetimes, policy: policy, known: map[netip.Addr]*opened{}}
	var packets net.PacketConn
	var streams net.Listener
	err = ns.Do(func() (err error) {
		address := netip.AddrPortFrom(netip.MustParseAddr(TapIP), dnsPort)
		udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
		if err != nil {
			return err
		}
		packets = udp
		tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(address))
		if err != nil {
			return errors.Join(err, udp.Close())
		}
		streams = tcp
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening for a sandbox's questions: %w", err), ns.Close())
	}
	n.server = nameserver.Serve(nameserver.Config{
		Packets: packets, Streams: streams, Upstreams: h.upstreams(), Allowed: n.allowed, Learn: n.learn,
		Ceiling: h.lifetimes.ceiling, Logger: h.cfg.Logger,
	})
	return n, nil
}

func (n *names) close() error { return errors.Join(n.server.Close(), n.ns.Close()) }

func (n *names) allowed(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.policy.AllowsName(name)
}

// learn opens the addresses of a name. Those in private ranges are left closed, whoever's name says that
// they are its own; the host's own addresses are stopped by the host's rules.
func (n *names) learn(name string, found []nameserver.Address) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.policy.AllowsName(name) {
		return errors.New("the policy has changed meanwhile")
	}
	now := time.Now()
	open := map[netip.Addr]time.Duration{}
	for _, a := range found {
		lasts := min(max(a.TTL, n.lifetimes.floor), n.lifetimes.ceiling) + n.lifetimes.grace
		k := n.known[a.Addr]
		switch {
		case egress.Private(a.Addr):
		case k == nil || k.until.Before(now.Add(lasts-n.lifetimes.grace/2)):
			open[a.Addr] = lasts
		default: // open for long enough
			k.add(name)
		}
	}
	if len(open) == 0 {
		return nil
	}
	if err := n.makeRoom(open, now); err != nil {
		return err
	}
	if err := n.ns.Do(func() error { return extend(open) }); err != nil {
		return err
	}
	for addr, lasts := range open {
		if n.known[addr] == nil {
			n.known[addr] = &opened{}
		}
		n.known[addr].until = now.Add(lasts)
		n.known[addr].add(name)
	}
	return nil
}

// maxNames is how many names of one address are remembered; many sites share the addresses of a content
// delivery network. A forgotten name costs no more than another question after a change of the policy.
const maxNames = 16

func (o *opened) add(name string) {
	if slices.Contains(o.names, name) {
		return
	}
	if len(o.names) == maxNames {
		o.names = o.names[1:]
	}
	o.names = append(o.names, name)
}

// makeRoom forgets addresses that are no longer open, if it must, so that those of open fit in.
func (n *names) makeRoom(open map[netip.Addr]time.Duration, now time.Time) error {
	added := 0
	for addr := range open {
		if n.known[addr] == nil {
			added++
		}
	}
	if len(n.known)+added <= maxAddresses {
		return nil
	}
	maps.DeleteFunc(n.known, func(_ netip.Addr, o *opened) bool { return o.until.Before(now) })
	if len(n.known)+added > maxAddresses {
		return fmt.Errorf("the names of the sandbox already hold %d addresses, at most %d are allowed", len(n.known), maxAddresses)
	}
	return nil
}

// extend runs in the namespace. It opens addresses, or puts off the end of those that are open: in one
// transaction, since older kernels (before 6.12) take no other time for an element that is there.
func extend(open map[netip.Addr]time.Duration) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	set := namesSet(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable}, 0)
	elements := timed(open)
	err = errors.Join(conn.SetAddElements(set, elements), conn.SetDeleteElements(set, elements), conn.SetAddElements(set, elements))
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("opening the addresses of a name: %w", err)
	}
	return nil
}

func namesSet(table *nftables.Table, id uint32) *nftables.Set {
	return &nftables.Set{Table: table, Name: openSet, ID: id, KeyType: nftables.TypeIPAddr, HasTimeout: true, Size: 2 * maxAddresses}
}

func timed(open map[netip.Addr]time.Duration) []nftables.SetElement {
	elements := make([]nftables.SetElement, 0, len(open))
	for addr, lasts := range open {
		elements = append(elements, nftables.SetElement{Key: addr.AsSlice(), Timeout: max(lasts, time.Millisecond)})
	}
	return elements
}

// set replaces the policy and the table at once. Addresses of names that the new policy allows too stay
// open for the rest of their time, and connections to them go on.
func (n *names) set(policy Policy) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := ruleset{policy: policy, mark: newMark(), open: map[netip.Addr]time.Duration{}}
	keep := map[netip.Addr]*opened{}
	for addr, o := range n.known {
		still := slices.DeleteFunc(slices.Clone(o.names), func(name string) bool { return !policy.AllowsName(name) })
		if len(still) == 0 {
			continue
		}
		keep[addr] = &opened{names: still, until: o.until}
		r.known = append(r.known, addr)
		if left := time.Until(o.until); left > 0 {
			r.open[addr] = left
		}
	}
	if err := n.ns.Do(func() error { return n.site.replaceEgress(r) }); err != nil {
		return err
	}
	n.policy, n.known = policy, keep
	return nil
}

// addNames lets through what goes to an address of a name, and marks its connection, so that it may go
// on when the address is no longer open for others. A connection that a former table has marked may go
// on if its address is known to belong to a name that is still allowed.
func addNames(conn *nftables.Conn, forward *nftables.Chain, r ruleset, sets *uint32) error {
	*sets++
	open := namesSet(forward.Table, *sets)
	if err := conn.AddSet(open, timed(r.open)); err != nil {
		return err
	}
	addRule(conn, forward, from(TapName), destinationIn(open), setMark(r.mark), verdict(expr.VerdictAccept))
	addRule(conn, forward, from(TapName), mark(expr.CmpOpEq, r.mark), verdict(expr.VerdictAccept))
	*sets++
	known := &nftables.Set{Table: forward.Table, Name: knownSet, ID: *sets, KeyType: nftables.TypeIPAddr}
	elements := make([]nftables.SetElement, 0, len(r.known))
	for _, addr := range r.known {
		elements = append(elements, nftables.SetElement{Key: addr.AsSlice()})
	}
	if err := conn.AddSet(known, elements); err != nil {
		return err
	}
	addRule(conn, forward, from(TapName), mark(expr.CmpOpNeq, 0), destinationIn(known), setMark(r.mark), verdict(expr.VerdictAccept))
	return nil
}

// newMark is never 0, which connections bear that no name has let through.
func newMark() uint32 { return rand.Uint32() | 1 } //nolint:gosec // it tells tables apart, nobody has to guess it

// forgetQuestions runs in the namespace, after questions have begun or ceased to be led to the forwarder:
// a flow that is tracked already would go on as it began.
func forgetQuestions() error {
	var filters []netlink.CustomConntrackFilter
	for _, protocol := range dnsProtocols {
		f := &netlink.ConntrackFilter{}
		if err := errors.Join(
			f.AddProtocol(protocol), f.AddPort(netlink.ConntrackOrigDstPort, dnsPort),
			f.AddIP(netlink.ConntrackOrigSrcIP, net.ParseIP(GuestIP)),
		); err != nil {
			return err
		}
		filters = append(filters, f)
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...); err != nil {
		return fmt.Errorf("forgetting the guest's earlier questions: %w", err)
	}
	return nil
}
