package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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

// writeEgress runs in a namespace that has no egress rules yet.
func (s *site) writeEgress(policy Policy) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	return s.commitEgress(conn, policy)
}

// replaceEgress runs in the namespace. It replaces the table in one transaction; adding it first makes
// deleting it valid where a crash left none. The deletion makes the kernel wait, some ten milliseconds,
// until no packet uses the old rules, which is why writeEgress does without.
func (s *site) replaceEgress(policy Policy) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable}
	conn.AddTable(table)
	conn.DelTable(table)
	return s.commitEgress(conn, policy)
}

func (s *site) commitEgress(conn *nftables.Conn, policy Policy) error {
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable})
	addDoors(conn, table)
	if err := s.addForward(conn, table, policy); err != nil {
		return fmt.Errorf("writing the egress rules: %w", err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing the egress rules: %w", err)
	}
	return nil
}

// addDoors stops at the TAP what no policy can allow: other source addresses than the guest's, before
// they are tracked, and the namespace itself as a destination.
func addDoors(conn *nftables.Conn, table *nftables.Table) {
	antispoof := conn.AddChain(&nftables.Chain{
		Table: table, Name: "antispoof", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	addRule(conn, antispoof, from(TapName), source(expr.CmpOpNeq, netip.MustParseAddr(GuestIP)), verdict(expr.VerdictDrop))
	input := conn.AddChain(&nftables.Chain{
		Table: table, Name: "input", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	addRule(conn, input, from(TapName), verdict(expr.VerdictDrop))
}

// addForward is the policy. The sets are numbered here, by which the rules of the same transaction refer
// to them: the library would count through all transactions of the process, and not safely.
// What the policy refuses is answered, so that a program in the guest fails at once instead of waiting
// for a timeout.
func (s *site) addForward(conn *nftables.Conn, table *nftables.Table, policy Policy) error {
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
	if err := addRanges("deny", policy.Deny, refuse()); err != nil {
		return err
	}
	if policy.AllowInternet {
		for _, resolver := range s.resolvers {
			for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				addRule(conn, forward, from(TapName), destinationIs(resolver), destinationPort(protocol, 53), verdict(expr.VerdictAccept))
			}
		}
		if err := addRanges("private", privateRanges, refuse()); err != nil {
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
