// Package network gives each sandbox a network of its own: a namespace with a TAP for the guest, joined
// to the host by a veth pair, translated so that every guest has the same addresses, and closed to
// everything but the internet unless its policy opens more.
//
// What a network is made of follows from its slot number alone, so it can be removed without memory
// of having been made.
package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// MaxSlot is the highest slot. Each slot takes two addresses of 10.12.0.0/16, which has 65,536, and
// slot 0 is left out; the addresses of slot 32768 would be those of slot 0 again.
const MaxSlot Slot = 32767

var (
	// HostRange holds the addresses by which the host reaches the guests.
	HostRange = netip.MustParsePrefix("10.11.0.0/16")
	// LinkRange holds the addresses of the veth pairs.
	LinkRange = netip.MustParsePrefix("10.12.0.0/16")
)

const (
	netnsPrefix = "wrenn-ns-"
	// vethPrefix has no dash before the number: the kernel allows 15 bytes for the name of an
	// interface (IFNAMSIZ is 16 with the final NUL), and "wrenn-veth-32767" has 16.
	vethPrefix = "wrenn-veth"
)

// ErrInvalidSlot is what the errors for a slot out of 1..MaxSlot wrap.
var ErrInvalidSlot = errors.New("invalid network slot")

// Slot is the index of one sandbox's network, 1 to MaxSlot. Names and addresses derive from it; those
// of an invalid slot are meaningless, so whoever takes a number from outside calls Check.
type Slot int

// Check returns an error that wraps ErrInvalidSlot unless the slot is within 1..MaxSlot.
func (s Slot) Check() error {
	if s < 1 || s > MaxSlot {
		return fmt.Errorf("%w: %d is not within 1..%d", ErrInvalidSlot, s, MaxSlot)
	}
	return nil
}

// Netns is the name of the slot's network namespace: "wrenn-ns-7".
func (s Slot) Netns() string { return netnsPrefix + strconv.Itoa(int(s)) }

// Veth is the name of the host's end of the slot's veth pair: "wrenn-veth7".
func (s Slot) Veth() string { return vethPrefix + strconv.Itoa(int(s)) }

// HostIP is the address by which the host reaches the slot's guest: 10.11.0.0 + slot.
func (s Slot) HostIP() netip.Addr { return offset(HostRange, int(s)) }

// VethIP is the address of the host's end of the veth pair, the namespace's gateway: 10.12.0.0 + 2·slot.
func (s Slot) VethIP() netip.Addr { return offset(LinkRange, 2*int(s)) }

// VpeerIP is the address of the namespace's end of the veth pair, the source of all that the guest
// sends out: VethIP + 1.
func (s Slot) VpeerIP() netip.Addr { return offset(LinkRange, 2*int(s)+1) }

// ParseNetns returns the slot whose namespace has exactly this name.
func ParseNetns(name string) (Slot, bool) { return parse(name, netnsPrefix) }

// ParseVeth returns the slot whose veth has exactly this name.
func ParseVeth(name string) (Slot, bool) { return parse(name, vethPrefix) }

// ParseHostIP returns the slot whose guest the host reaches by addr.
func ParseHostIP(addr netip.Addr) (Slot, bool) {
	if !HostRange.Contains(addr) {
		return 0, false
	}
	b := addr.As4()
	s := Slot(int(b[2])<<8 | int(b[3]))
	return s, s.Check() == nil
}

// parse accepts no other spelling of the number than the one that we write ("7", not "07" or "+7").
func parse(name, prefix string) (Slot, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	if err != nil || strconv.Itoa(n) != digits || Slot(n).Check() != nil {
		return 0, false
	}
	return Slot(n), true
}

// offset counts within a /16. Only the last two bytes can change: a number past the range wraps
// instead of naming someone else's address.
func offset(r netip.Prefix, n int) netip.Addr {
	b := r.Addr().As4()
	b[2], b[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(b)
}
