package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cardName is the guest's network card.
const cardName = "eth0"

// maxFrame holds the largest frame of a TAP with segmentation offload, 64 KiB, and its header.
const maxFrame = 65536 + 64

// openTAP attaches to an existing TAP of the thread's network namespace, with the flags of Firecracker.
func openTAP(name string) (*os.File, error) {
	if _, err := net.InterfaceByName(name); err != nil {
		// As root the kernel would make that TAP, unconnected to anything.
		return nil, unix.ENODEV
	}
	return attach(name)
}

// attach opens a TAP, and makes it where there is none. Large frames pass whole, as with virtio: it is
// their receiver that has checksums and segments done, if it must.
func attach(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
	}
	if err != nil {
		_ = unix.Close(fd) // the error below is the one to tell
		return nil, fmt.Errorf("attach to the TAP %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tap "+name), nil
}

// plugIn sets up the network namespace of the calling thread: lo, and where there is an interface its
// card, which is the end of a TAP that the VMM holds. It returns nil where there is none.
func plugIn(cfg guestConfig) (*os.File, error) {
	if err := raise("lo"); err != nil {
		return nil, err
	}
	if cfg.NIC == nil {
		return nil, nil
	}
	card, err := attach(cardName)
	if err != nil {
		return nil, err
	}
	if err := addressCard(cfg); err != nil {
		_ = card.Close() // the error is the one to tell
		return nil, fmt.Errorf("set up the guest's card: %w", err)
	}
	return card, nil
}

func addressCard(cfg guestConfig) error {
	link, err := netlink.LinkByName(cardName)
	if err != nil {
		return err
	}
	if cfg.NIC.GuestMAC != "" {
		mac, err := net.ParseMAC(cfg.NIC.GuestMAC)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if ip := bootArg(cfg.Args, "wrenn.ip"); ip != "" {
		address, err := netlink.ParseAddr(ip)
		if err != nil {
			return fmt.Errorf("wrenn.ip: %w", err)
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("add the address %s: %w", ip, err)
		}
	}
	if gw := bootArg(cfg.Args, "wrenn.gw"); gw != "" {
		gateway, err := netip.ParseAddr(gw)
		if err != nil {
			return fmt.Errorf("wrenn.gw: %w", err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
			return fmt.Errorf("add the route by %s: %w", gw, err)
		}
	}
	return nil
}

func raise(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("raise %s: %w", name, err)
	}
	return nil
}

// bootArg is the value of the last argument called name on a kernel command line, or "".
func bootArg(line, name string) (value string) {
	for arg := range strings.FieldsSeq(line) {
		if v, ok := strings.CutPrefix(arg, name+"="); ok {
			value = v
		}
	}
	return value
}
