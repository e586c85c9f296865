package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"wrenn/impl/egress"
)

// The tables in the slot's namespace. Egress has one of its own so that it can be replaced whole.
const (
	natTable    = "wrenn-nat"
	egressTable = "wrenn-egress"
)

// writeNAT runs in the namespace. All guests have the same address: the one by which the host reaches
// this one becomes the guest's, and what the guest sends out comes from the namespace's.
func (s *site) writeNAT() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	guest := netip.MustParseAddr(GuestIP)
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: natTable})
	in := conn.AddChain(&nftables.Chain{
		Table: table, Name: "prerouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	addRule(conn, in, from(vpeerName), destinationIs(s.slot.HostIP()), translate(expr.NATTypeDestNAT, guest))
	out := conn.AddChain(&nftables.Chain{
		Table: table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	addRule(conn, out, to(vpeerName), source(expr.CmpOpEq, guest), translate(expr.NATTypeSourceNAT, s.slot.VpeerIP()))
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing the address translation: %w", err)
	}
	return nil
}

// ruleset is what the egress table is written from.
type ruleset struct {
	policy Policy
	// open are the addresses of allowed names that may be connected to, each for how long.
	open map[netip.Addr]time.Duration
	// known are those that connections under way may go on with, open or not any more.
	known []netip.Addr
	// mark is what connections bear that this table has let through by a name: another number for each
	// table, never 0.
	mark uint32
}

// writeEgress runs in a namespace that has no egress rules yet.
func (s *site) writeEgress(policy Policy) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	return s.commitEgress(conn, ruleset{policy: policy, mark: newMark()})
}

// replaceEgress runs in the namespace. It replaces the table in one transaction; adding it first makes
// deleting it valid where a crash left none. The deletion makes the kernel wait, some ten milliseconds,
// until no packet uses the old rules, which is why writeEgress does without.
func (s *site) replaceEgress(r ruleset) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable}
	conn.AddTable(table)
	conn.DelTable(table)
	return s.commitEgress(conn, r)
}

func (s *site) commitEgress(conn *nftables.Conn, r ruleset) error {
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable})
	conn.AddChain(&nftables.Chain{Table: table, Name: s.seal(r.policy)})
	addDoors(conn, table, len(r.policy.Domains) > 0)
	if err := s.addForward(conn, table, r); err != nil {
		return fmt.Errorf("writing the egress rules: %w", err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing the egress rules: %w", err)
	}
	return nil
}

// addDoors stops at the TAP what no policy can allow: other source addresses than the guest's, before
// they are tracked, and the namespace itself as a destination, but for its forwarder of names. To that
// all questions are led, whatever server the guest asks.
func addDoors(conn *nftables.Conn, table *nftables.Table, names bool) {
	antispoof := conn.AddChain(&nftables.Chain{
		Table: table, Name: "antispoof", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	addRule(conn, antispoof, from(TapName), source(expr.CmpOpNeq, netip.MustParseAddr(GuestIP)), verdict(expr.VerdictDrop))
	input := conn.AddChain(&nftables.Chain{
		Table: table, Name: "input", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	if names {
		tap := netip.MustParseAddr(TapIP)
		lead := conn.AddChain(&nftables.Chain{
			Table: table, Name: "names", Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		for _, protocol := range dnsProtocols {
			addRule(conn, lead, from(TapName), destinationPort(protocol, dnsPort), translate(expr.NATTypeDestNAT, tap))
			addRule(conn, input, from(TapName), destinationIs(tap), destinationPort(protocol, dnsPort), verdict(expr.VerdictAccept))
		}
	}
	addRule(conn, input, from(TapName), verdict(expr.VerdictDrop))
}

// dnsPort and dnsProtocols are how a name server is asked.
const dnsPort = 53

var dnsProtocols = []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP}

// addForward is the policy. The sets are numbered here, by which the rules of the same transaction refer
// to them: the library would count through all transactions of the process, and not safely.
// What the policy refuses is answered, so that a program in the guest fails at once instead of waiting
// for a timeout.
func (s *site) addForward(conn *nftables.Conn, table *nftables.Table, r ruleset) error {
	policy := r.policy
	drop := nftables.ChainPolicyDrop
	forward := conn.AddChain(&nftables.Chain{
		Table: table, Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	addRule(conn, forward, from(vpeerName), conntrackHas(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	addRule(conn, forward, from(vpeerName), conntrackHas(expr.CtKeySTATUS, statusDNAT), verdict(expr.VerdictAccept))
	addRule(conn, forward, from(TapName), isReply(), verdict(expr.VerdictAccept))
	var sets uint32
	addRanges := func(name string, prefixes []netip.Prefix, then []expr.Any) error {
		sets++
		set := &nftables.Set{Table: table, Name: name, ID: sets, KeyType: nftables.TypeIPAddr, Interval: true}
		err := conn.AddSet(set, ranges(prefixes))
		if err == nil {
			addRule(conn, forward, from(TapName), destinationIn(set), then)
		}
		return err
	}
	if err := addRanges("allow", policy.Allow, verdict(expr.VerdictAccept)); err != nil {
		return err
	}
	if len(policy.Domains) > 0 {
		if err := addNames(conn, forward, r, &sets); err != nil {
			return err
		}
	}
	if err := addRanges("deny", policy.Deny, refuse()); err != nil {
		return err
	}
	if policy.AllowInternet {
		for _, resolver := range s.resolvers {
			for _, protocol := range dnsProtocols {
				addRule(conn, forward, from(TapName), destinationIs(resolver), destinationPort(protocol, dnsPort), verdict(expr.VerdictAccept))
			}
		}
		if err := addRanges("private", egress.PrivateRanges(), refuse()); err != nil {
			return err
		}
		addRule(conn, forward, from(TapName), verdict(expr.VerdictAccept))
	}
	addRule(conn, forward, from(TapName), refuse())
	return nil
}

// ranges are the elements of a set: of each range its first address and the first after it. A range
// that ends with the last address of all has no end.
func ranges(prefixes []netip.Prefix) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, p := range disjoint(prefixes) {
		first := p.Addr().As4()
		elements = append(elements, nftables.SetElement{Key: first[:]})
		end := uint64(binary.BigEndian.Uint32(first[:])) + 1<<(32-p.Bits())
		if end <= 0xffffffff {
			elements = append(elements, nftables.SetElement{
				Key: binary.BigEndian.AppendUint32(nil, uint32(end)), IntervalEnd: true,
			})
		}
	}
	return elements
}

func addRule(conn *nftables.Conn, chain *nftables.Chain, parts ...[]expr.Any) {
	rule := &nftables.Rule{Table: chain.Table, Chain: chain}
	for _, p := range parts {
		rule.Exprs = append(rule.Exprs, p...)
	}
	conn.AddRule(rule)
}
