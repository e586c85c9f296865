package qemu

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What waits in a token bucket filter's queue stands in one of two bands. The first, which always goes first, is
// for packets with RFC 1349's "minimize delay": OpenSSH's terminals have it, and Wrenn's. Without it a key waits
// behind all that a download has queued, up to queueTime. Who marks everything has one queue as before, and the
// bucket counts both alike. HTB with two classes that never run dry is used as nothing but the order: there are small
// kernels that have it and not sch_prio.
const (
	bandFirst = 1 // the minor numbers of the classes, and one less than their priorities
	bandOther = 2

	// lowDelay is the byte of the IPv4 header that makes a packet go first.
	lowDelay = 0x10

	// neverDry is a rate, in bytes per second, that no TAP reaches; beyond 32 bits there would be a second form of it.
	neverDry = 4_000_000_000
	// neverSpent is what a class may send at once, in bytes.
	neverSpent = 16 << 20
	// quantum is the turn of one class among others of its priority, of which there are none; left out, the kernel
	// would complain that it is large.
	quantum = 64 << 10
)

// setBands puts the bands below the filter with that handle; each queues up to limit bytes. On a kernel without HTB
// the filter keeps its one queue.
func setBands(link netlink.Link, filter, limit uint32) error {
	index, handle := link.Attrs().Index, netlink.MakeHandle(2, 0)
	order := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: handle, Parent: filter + 1})
	order.Defcls = bandOther
	switch err := netlink.QdiscAdd(order); {
	case errors.Is(err, unix.EEXIST): // a change of the rate
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		return fmt.Errorf("add the bands: %w", err)
	}
	for _, band := range []uint16{bandFirst, bandOther} {
		class := netlink.MakeHandle(2, band)
		attrs := netlink.ClassAttrs{LinkIndex: index, Parent: handle, Handle: class}
		if err := netlink.ClassReplace(netlink.NewHtbClass(attrs, netlink.HtbClassAttrs{
			Rate: 8 * neverDry, Buffer: neverSpent, Cbuffer: neverSpent, Quantum: quantum, Prio: uint32(band) - 1,
		})); err != nil {
			return fmt.Errorf("add band %d: %w", band, err)
		}
		if err := setQueue(index, class, netlink.MakeHandle(10+band, 0), limit); err != nil {
			return fmt.Errorf("add the queue of band %d: %w", band, err)
		}
	}
	return choose(index, handle)
}

// setQueue puts a queue of so many bytes below a class; the library knows none that counts bytes.
func setQueue(index int, class, handle, limit uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: handle, Parent: class})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bfifo")))
	req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, nl.Uint32Attr(limit)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// choose puts marked packets into the first band.
func choose(index int, order uint32) error {
	filters, err := netlink.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, order)
	if err != nil {
		return fmt.Errorf("list the bands' filters: %w", err)
	}
	if len(filters) > 0 {
		return nil
	}
	marked := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: order, Priority: 1, Protocol: unix.ETH_P_IP},
		ClassId:     netlink.MakeHandle(2, bandFirst),
		// The header's first word, of which the second byte is the type of service, with two bits that are of ECN.
		Sel: &netlink.TcU32Sel{Flags: nl.TC_U32_TERMINAL, Nkeys: 1, Keys: []netlink.TcU32Key{{Mask: 0xfc << 16, Val: lowDelay << 16}}},
	}
	if err := netlink.FilterAdd(marked); err != nil {
		return fmt.Errorf("add the bands' filter: %w", err)
	}
	return nil
}
