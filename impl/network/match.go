package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The parts of which the rules in rules.go are put together. Each loads what it looks at into the
// first register; the comments show the part as the nft command spells it.

const register = unix.NFT_REG_1

// statusDNAT is the conntrack status bit of a connection whose destination was translated
// (IPS_DST_NAT in nf_conntrack_common.h).
const statusDNAT = 1 << 5

// iifname NAME
func from(link string) []expr.Any { return onLink(expr.MetaKeyIIFNAME, link) }

// oifname NAME
func to(link string) []expr.Any { return onLink(expr.MetaKeyOIFNAME, link) }

func onLink(key expr.MetaKey, link string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, link)
	return []expr.Any{
		&expr.Meta{Key: key, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: name},
	}
}

// The offsets of the addresses in the IPv4 header, RFC 791.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

func address(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

// ip saddr ADDR, ip saddr != ADDR
func source(op expr.CmpOp, addr netip.Addr) []expr.Any {
	return []expr.Any{address(sourceOffset), &expr.Cmp{Op: op, Register: register, Data: addr.AsSlice()}}
}

// ip daddr ADDR
func destinationIs(addr netip.Addr) []expr.Any {
	return []expr.Any{address(destinationOffset), &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: addr.AsSlice()}}
}

// ip daddr @SET
func destinationIn(set *nftables.Set) []expr.Any {
	return []expr.Any{address(destinationOffset), &expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID}}
}

// udp dport PORT, tcp dport PORT; both headers have it at byte 2.
func destinationPort(protocol byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{protocol}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// ct state BITS, ct status BITS
func conntrackHas(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: register},
		&expr.Bitwise{
			SourceRegister: register, DestRegister: register, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
	}
}

// ct mark MARK, ct mark != MARK
func mark(op expr.CmpOp, value uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: register},
		&expr.Cmp{Op: op, Register: register, Data: binaryutil.NativeEndian.PutUint32(value)},
	}
}

// ct mark set MARK
func setMark(value uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: register, Data: binaryutil.NativeEndian.PutUint32(value)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true},
	}
}

// ct direction reply (IP_CT_DIR_REPLY is 1)
func isReply() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{1}},
	}
}

// dnat to ADDR, snat to ADDR
func translate(kind expr.NATType, addr netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: register, Data: addr.AsSlice()},
		&expr.NAT{Type: kind, Family: unix.NFPROTO_IPV4, RegAddrMin: register},
	}
}

// accept, drop
func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// reject with icmp type admin-prohibited (ICMP_PKT_FILTERED is 13)
func refuse() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13}}
}
