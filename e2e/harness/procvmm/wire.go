package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

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

// connectFrames carries frames between the guest's card and the TAP until the process ends, within the
// limits of the interface.
func connectFrames(card, tap *os.File, n *nic) {
	go carry(card, tap, newBucket(n.TxRateLimiter, time.Now()))
	go carry(tap, card, newBucket(n.RxRateLimiter, time.Now()))
}

func carry(from, to *os.File, limit *bucket) {
	frame := make([]byte, maxFrame)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return // the link is gone, and with it the guest's network
		}
		time.Sleep(limit.take(int64(n), time.Now()))
		// A frame for a card that is down or busy is lost, as on a wire.
		_, _ = to.Write(frame[:n])
	}
}

// bucket limits one direction of the wire. A nil one does not limit.
type bucket struct {
	size, left, once float64 // bytes
	perSecond        float64
	at               time.Time
}

func newBucket(l *limiter, now time.Time) *bucket {
	if l == nil || l.Bandwidth == nil || l.Bandwidth.Size <= 0 || l.Bandwidth.RefillTime <= 0 {
		return nil // Firecracker too takes a zero for no limit
	}
	b := l.Bandwidth
	return &bucket{
		size: float64(b.Size), left: float64(b.Size), once: float64(b.OneTimeBurst),
		perSecond: 1000 * float64(b.Size) / float64(b.RefillTime), at: now,
	}
}

// take spends n bytes at now and returns how long their frame must wait.
func (b *bucket) take(n int64, now time.Time) time.Duration {
	if b == nil {
		return 0
	}
	b.left = min(b.size, b.left+now.Sub(b.at).Seconds()*b.perSecond)
	b.at = now
	spend := float64(n)
	extra := min(spend, b.once)
	b.once -= extra
	b.left -= spend - extra
	if b.left >= 0 {
		return 0
	}
	return time.Duration(-b.left / b.perSecond * float64(time.Second))
}
