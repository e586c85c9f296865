package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns"
)

// vpeerName is the namespace's end of the veth pair.
const vpeerName = "vpeer"

// routeProtocol marks the routes that are ours. The kernel and the routing daemons leave the numbers
// above 192 free for others, save a few (rtnetlink.h, iproute2's rt_protos).
const routeProtocol netlink.RouteProtocol = 217

// site is where the parts of one slot's network are made and removed.
type site struct {
	slot      Slot
	resolvers []netip.Addr
}

// setKernel runs in the namespace, before it has any link but lo. Guests have no IPv6: turning it off
// keeps them from every link-local IPv6 address.
func setKernel() error {
	return writeSettings(setting{path: ipForward, value: "1"}, noIPv6("all"), noIPv6("default"))
}

// makeVeth creates the pair with one end in the namespace. The error wraps fs.ErrExist when the host
// has a link of that name.
func (s *site) makeVeth() error {
	ns, err := netns.Open(s.slot.Netns())
	if err != nil {
		return err
	}
	defer ns.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: s.slot.Veth(), TxQLen: -1})
	veth.PeerName = vpeerName
	veth.PeerNamespace = netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("creating veth %s: %w", s.slot.Veth(), asExist(err))
	}
	return nil
}

// removeVeth leaves a link of that name alone that is no veth: we never made it.
func (s *site) removeVeth() error {
	link, err := netlink.LinkByName(s.slot.Veth())
	if isGone(err) || err == nil && link.Type() != "veth" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for veth %s: %w", s.slot.Veth(), err)
	}
	if err := netlink.LinkDel(link); err != nil && !isGone(err) {
		return fmt.Errorf("deleting veth %s: %w", s.slot.Veth(), err)
	}
	return nil
}

// addressVeth readies the host's end. Should the namespace's own rule fail, reverse path filtering
// drops what claims to come from another slot (unless the host's setting for all links is 2, loose,
// which wins over a link's 1). IPv6 goes off before the link is up, so it never has a link-local address.
func (s *site) addressVeth() error {
	name := s.slot.Veth()
	filter := setting{path: "/proc/sys/net/ipv4/conf/" + name + "/rp_filter", value: "1"}
	if err := writeSettings(filter, noIPv6(name)); err != nil {
		return err
	}
	return bringUp(name, netip.PrefixFrom(s.slot.VethIP(), 31))
}

// addressVpeer readies the namespace's end; it runs in the namespace.
func (s *site) addressVpeer() error {
	if err := bringUp(vpeerName, netip.PrefixFrom(s.slot.VpeerIP(), 31)); err != nil {
		return err
	}
	gateway := s.slot.VethIP().AsSlice()
	if err := netlink.RouteAdd(&netlink.Route{Gw: gateway, Protocol: routeProtocol}); err != nil {
		return fmt.Errorf("adding the default route: %w", err)
	}
	return nil
}

// makeTap runs in the namespace. The device outlives its users (it is persistent), so that a VMM that
// starts later finds it; each VMM states anew whether its frames carry a virtio-net header.
func makeTap() error {
	mac, err := net.ParseMAC(TapMAC)
	if err != nil {
		return err
	}
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: TapName},
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("creating %s: %w", TapName, err)
	}
	if err := netlink.LinkSetHardwareAddr(tap, mac); err != nil {
		return fmt.Errorf("setting the hardware address of %s: %w", TapName, err)
	}
	if err := netlink.LinkSetTxQLen(tap, TapQueueLength); err != nil {
		return fmt.Errorf("setting the queue length of %s: %w", TapName, err)
	}
	if err := bringUp(TapName, netip.PrefixFrom(netip.MustParseAddr(TapIP), GuestPrefixBits)); err != nil {
		return err
	}
	return addGuestNeighbour()
}

// addGuestNeighbour tells the namespace the guest's hardware address for good. Left to ask for it, the
// kernel would ask once a second while the guest boots, and the guest's first answer would wait for the
// next time.
func addGuestNeighbour() error {
	mac, err := net.ParseMAC(GuestMAC)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(TapName)
	if err != nil {
		return fmt.Errorf("looking for link %s: %w", TapName, err)
	}
	guest := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(GuestIP), HardwareAddr: mac,
	}
	if err := netlink.NeighSet(guest); err != nil {
		return fmt.Errorf("setting the guest's hardware address: %w", err)
	}
	return nil
}

func (s *site) route() *netlink.Route {
	return &netlink.Route{
		Dst:      ipNet(netip.PrefixFrom(s.slot.HostIP(), 32)),
		Gw:       s.slot.VpeerIP().AsSlice(),
		Protocol: routeProtocol,
	}
}

// addRoute leads the host to the guest. The error wraps fs.ErrExist when there is a route already.
func (s *site) addRoute() error {
	if err := netlink.RouteAdd(s.route()); err != nil {
		return fmt.Errorf("adding the route to %s: %w", s.slot.HostIP(), asExist(err))
	}
	return nil
}

// removeRoute deletes by destination and protocol whatever gateway, device or scope the route has.
func (s *site) removeRoute() error {
	route := &netlink.Route{Dst: s.route().Dst, Protocol: routeProtocol, Scope: netlink.SCOPE_NOWHERE}
	if err := netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("deleting the route to %s: %w", s.slot.HostIP(), err)
	}
	return nil
}

func bringUp(name string, address netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking for link %s: %w", name, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", name, address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing up %s: %w", name, err)
	}
	return nil
}

func noIPv6(link string) setting {
	return setting{path: "/proc/sys/net/ipv6/conf/" + link + "/disable_ipv6", value: "1", optional: true}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// asExist makes the kernel's EEXIST recognisable as fs.ErrExist.
func asExist(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	}
	return err
}

func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// prefixOf is false for a route's missing destination.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}
