package network

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestN01_AddressesOfAllSlotsDiffer(t *testing.T) {
	owner := map[netip.Addr]Slot{}
	names := map[string]Slot{}
	for s := Slot(1); s <= MaxSlot; s++ {
		require.NoError(t, s.Check())
		for _, addr := range []netip.Addr{s.HostIP(), s.VethIP(), s.VpeerIP()} {
			if other, taken := owner[addr]; taken {
				t.Fatalf("%s belongs to slot %d and to slot %d", addr, other, s)
			}
			owner[addr] = s
		}
		if !HostRange.Contains(s.HostIP()) || !LinkRange.Contains(s.VethIP()) || !LinkRange.Contains(s.VpeerIP()) {
			t.Fatalf("slot %d is out of its ranges", s)
		}
		if netip.PrefixFrom(s.VethIP(), 31).Masked() != netip.PrefixFrom(s.VpeerIP(), 31).Masked() {
			t.Fatalf("the ends of slot %d's link are not in one /31", s)
		}
		for _, name := range []string{s.Netns(), s.Veth()} {
			if other, taken := names[name]; taken {
				t.Fatalf("%s names slot %d and slot %d", name, other, s)
			}
			names[name] = s
		}
		if len(s.Veth()) >= unix.IFNAMSIZ {
			t.Fatalf("%s is too long for an interface", s.Veth())
		}
		if back, ok := ParseNetns(s.Netns()); !ok || back != s {
			t.Fatalf("ParseNetns(%s) = %d, %v", s.Netns(), back, ok)
		}
		if back, ok := ParseVeth(s.Veth()); !ok || back != s {
			t.Fatalf("ParseVeth(%s) = %d, %v", s.Veth(), back, ok)
		}
		if back, ok := ParseHostIP(s.HostIP()); !ok || back != s {
			t.Fatalf("ParseHostIP(%s) = %d, %v", s.HostIP(), back, ok)
		}
	}
}

func TestN01_KnownSlots(t *testing.T) {
	for _, tc := range []struct {
		slot                            Slot
		host, veth, vpeer, netns, vname string
	}{
		{1, "10.11.0.1", "10.12.0.2", "10.12.0.3", "wrenn-ns-1", "wrenn-veth1"},
		{128, "10.11.0.128", "10.12.1.0", "10.12.1.1", "wrenn-ns-128", "wrenn-veth128"},
		{32767, "10.11.127.255", "10.12.255.254", "10.12.255.255", "wrenn-ns-32767", "wrenn-veth32767"},
	} {
		assert.Equal(t, tc.host, tc.slot.HostIP().String())
		assert.Equal(t, tc.veth, tc.slot.VethIP().String())
		assert.Equal(t, tc.vpeer, tc.slot.VpeerIP().String())
		assert.Equal(t, tc.netns, tc.slot.Netns())
		assert.Equal(t, tc.vname, tc.slot.Veth())
	}
}

// The arithmetic that ran without a bound kept to the /16 by 16-bit offsets: slot 32768 got the
// addresses of slot 0, and slot 32769 those of slot 1, which was somebody's.
func TestN01_UnboundedArithmeticWrapped(t *testing.T) {
	unbounded := func(slot int) netip.Addr {
		b := [4]byte{10, 12}
		binary.BigEndian.PutUint16(b[2:], uint16(2*slot))
		return netip.AddrFrom4(b)
	}
	require.Equal(t, "10.12.255.254", unbounded(32767).String())
	require.Equal(t, "10.12.0.0", unbounded(32768).String())
	require.Equal(t, unbounded(1), unbounded(32769))
	for _, s := range []Slot{32768, 32769, 0, -1, 1 << 40} {
		assert.ErrorIs(t, s.Check(), ErrInvalidSlot, "slot %d", s)
		assert.NotPanics(t, func() { _, _, _ = s.HostIP(), s.VethIP(), s.VpeerIP() }, "slot %d", s)
	}
}

func TestN03_OnlyExactNamesAreOurs(t *testing.T) {
	for _, n := range []string{
		"", "wrenn-ns-", "wrenn-ns-0", "wrenn-ns-00", "wrenn-ns-07", "wrenn-ns-+7", "wrenn-ns--7", "wrenn-ns-7 ", " wrenn-ns-7",
		"wrenn-ns-7a", "wrenn-ns-abc", "wrenn-ns-32768", "wrenn-ns-99999", "wrenn-ns-18446744073709551623", "wrenn-ns-0x7",
		"wrenn-ns-1_0", "Wrenn-ns-7", "xwrenn-ns-7", "wrenn-ns7", "wrenn-ns-\u0667",
	} {
		_, ok := ParseNetns(n)
		assert.False(t, ok, "%q", n)
	}
	for _, n := range []string{"wrenn-veth", "wrenn-veth-7", "wrenn-veth-x", "wrenn-veth0", "wrenn-veth07", "wrenn-veth32768", "wrenn-veth7x", "veth7"} {
		_, ok := ParseVeth(n)
		assert.False(t, ok, "%q", n)
	}
	for _, ip := range []string{"10.11.0.0", "10.11.128.0", "10.12.0.1", "::1", "::ffff:10.11.0.1"} {
		_, ok := ParseHostIP(netip.MustParseAddr(ip))
		assert.False(t, ok, ip)
	}
}

func FuzzN03_ParseIsTheInverse(f *testing.F) {
	for _, n := range []string{"wrenn-ns-1", "wrenn-ns-32767", "wrenn-veth9", "wrenn-veth-9", "wrenn-ns-009"} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if s, ok := ParseNetns(name); ok && (s.Netns() != name || s.Check() != nil) {
			t.Fatalf("%q was taken for slot %d", name, s)
		}
		if s, ok := ParseVeth(name); ok && (s.Veth() != name || s.Check() != nil) {
			t.Fatalf("%q was taken for slot %d", name, s)
		}
	})
}
