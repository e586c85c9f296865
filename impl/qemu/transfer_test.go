package qemu

import (
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"wrenn/impl/netns"
)

// The two ends of a link between the host and a guest of the test, RFC 5737's documentation addresses.
const (
	hostEnd  = "192.0.2.1"
	guestEnd = "192.0.2.2"
)

// newLink joins a TAP of the process's namespace, as a VMM would, with the card of a guest that is a
// namespace. It returns the TAP's interface and the guest.
func newLink(t *testing.T) (nic, *netns.Handle) {
	t.Helper()
	tap := makeTAP(t, "tap0", plainTAP)
	guest, err := netns.Create("guest")
	require.NoError(t, err)
	t.Cleanup(func() { guest.Close(); assert.NoError(t, netns.Delete("guest")) })
	var card *os.File
	require.NoError(t, guest.Do(func() error {
		link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: plainTAP | netlink.TUNTAP_NO_PI}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		for _, fd := range link.Fds {
			fd.Close()
		}
		card, err = openTAP("eth0")
		if err == nil {
			err = address("eth0", guestEnd)
		}
		return err
	}))
	wire, err := openTAP(tap.Attrs().Name)
	require.NoError(t, err)
	require.NoError(t, address("tap0", hostEnd))
	var pumps sync.WaitGroup
	pump := func(from, to *os.File) {
		for frame := make([]byte, 65536+64); ; {
			n, err := from.Read(frame)
			if err != nil {
				return
			}
			_, _ = to.Write(frame[:n]) // what a full queue drops is lost, as on a wire
		}
	}
	pumps.Go(func() { pump(card, wire) })
	pumps.Go(func() { pump(wire, card) })
	t.Cleanup(func() { card.Close(); wire.Close(); pumps.Wait() })
	return nic{IfaceID: "eth0", HostDevName: "tap0"}, guest
}

func address(name, ip string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(ip + "/30")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// send has the guest send size bytes to the host, or receive them, and returns how long it took.
func send(t *testing.T, guest *netns.Handle, fromGuest bool, size int64) time.Duration {
	t.Helper()
	outside, inside := dial(t, guest)
	from, to := outside, inside
	if fromGuest {
		from, to = inside, outside
	}
	begin := time.Now()
	go func() {
		_, _ = from.Write(make([]byte, size)) // what does not arrive is noticed below
		from.Close()
	}()
	n, err := io.Copy(io.Discard, to)
	require.NoError(t, err)
	require.Equal(t, size, n)
	return time.Since(begin)
}

// TestN07_TrafficControlBoundsRealTransfers asserts what a limit makes slower and what it leaves alone,
// never how fast this machine is.
func TestN07_TrafficControlBoundsRealTransfers(t *testing.T) {
	n, guest := newLink(t)
	const rate, burst, size = 1 << 20, 512 << 10, 5 << 19 // 2.5 MiB: half at once, two seconds' worth after it
	limit := &rateLimiter{Bandwidth: &tokenBucket{Size: burst, RefillTime: 1000 * burst / rate}}
	least := 1400 * time.Millisecond // 70 % of the two seconds: packets in flight count for nothing
	var s shaper
	for _, tc := range []struct {
		name            string
		fromGuest       bool
		limited, spared nic
	}{
		{"what the guest sends", true, nic{HostDevName: n.HostDevName, TxRateLimiter: limit}, nic{HostDevName: n.HostDevName, RxRateLimiter: limit}},
		{"what it receives", false, nic{HostDevName: n.HostDevName, RxRateLimiter: limit}, nic{HostDevName: n.HostDevName, TxRateLimiter: limit}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			took := func(n nic) time.Duration {
				require.NoError(t, s.apply([]nic{n}))
				return send(t, guest, tc.fromGuest, size)
			}
			free, limited, spared, freed := took(n), took(tc.limited), took(tc.spared), took(n)
			t.Logf("free %v, limited %v, the other direction limited %v, free again %v", free, limited, spared, freed)
			assert.Greater(t, limited, least)
			for _, unlimited := range []time.Duration{free, spared, freed} {
				assert.Less(t, unlimited, limited)
			}
		})
	}
	require.NoError(t, s.remove())
}
