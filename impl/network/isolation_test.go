package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns"
)

// watched is the port on which the tests listen for what must not arrive.
const watched = 7777

// rawFrame is an Ethernet frame with a UDP datagram in it, as only a guest with a driver of its own could
// send it: nobody checks its addresses.
func rawFrame(fromMAC, toMAC string, from, to netip.Addr, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, watched)
	udp = binary.BigEndian.AppendUint16(udp, watched)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...) // without a checksum, which IPv4 allows
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	frame := bytes.Join([][]byte{mustMAC(toMAC), mustMAC(fromMAC), {0x08, 0x00}, ip, udp}, nil)
	return append(frame, make([]byte, max(0, 60-len(frame)))...)
}

func mustMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

// inject writes frames to the guest's card as they are.
func inject(t *testing.T, guest *netns.Handle, frames [][]byte) {
	t.Helper()
	require.NoError(t, guest.Do(func() error {
		card, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: card.Index}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// watch collects the datagrams that arrive at the watched port of a place.
type watch struct {
	mu   sync.Mutex
	seen []string
}

func (w *watch) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string{}, w.seen...)
}

func newWatch(t *testing.T, ns *netns.Handle) *watch {
	t.Helper()
	w := &watch{}
	var conn net.PacketConn
	require.NoError(t, in(ns, func() (err error) {
		conn, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", watched))
		return err
	}))
	var running sync.WaitGroup
	running.Go(func() {
		for buf := make([]byte, 256); ; {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			w.mu.Lock()
			w.seen = append(w.seen, string(buf[:n]))
			w.mu.Unlock()
		}
	})
	t.Cleanup(func() { conn.Close(); running.Wait() })
	return w
}

// TestN09_TwoGuestsMeetNowhere has each of two guests write frames with every source address that could
// help it, to every address that it must not reach. The policy allows as much as a policy can.
func TestN09_TwoGuestsMeetNowhere(t *testing.T) {
	h := setUp(t)
	outside := newOutside(t)
	const slotA, slotB Slot = 71, 72
	everything := Policy{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}
	places := map[string]*watch{"the host": newWatch(t, nil), "outside": newWatch(t, outside)}
	guests := map[Slot]*netns.Handle{}
	for _, slot := range []Slot{slotA, slotB} {
		guests[slot] = newSandbox(t, h, slot, everything)
		places[fmt.Sprintf("guest %d", slot)] = newWatch(t, guests[slot])
		inner, err := netns.Open(slot.Netns())
		require.NoError(t, err)
		defer inner.Close()
		places[fmt.Sprintf("namespace %d", slot)] = newWatch(t, inner)
	}
	var honest []string
	for slot, guest := range guests {
		other := slotA + slotB - slot
		targets := []string{TapIP, GuestIP, "169.254.169.254", hostUplink, "127.0.0.1", "255.255.255.255", "224.0.0.1"}
		targets = append(append(targets, all(slot)...), all(other)...)
		sources := []string{GuestIP, TapIP, "127.0.0.1", hostUplink, outsideUplink, publicServer, "0.0.0.0"}
		sources = append(append(sources, all(slot)...), all(other)...)
		var frames [][]byte
		for _, to := range append(targets, publicServer) {
			for _, from := range sources {
				if to == publicServer && from == GuestIP {
					continue // that one is honest
				}
				for _, mac := range [][2]string{{GuestMAC, TapMAC}, {TapMAC, TapMAC}, {GuestMAC, "ff:ff:ff:ff:ff:ff"}, {"02:00:00:00:00:01", TapMAC}} {
					what := fmt.Sprintf("from %s to %s", from, to)
					frames = append(frames, rawFrame(mac[0], mac[1], netip.MustParseAddr(from), netip.MustParseAddr(to), what))
				}
			}
		}
		what := fmt.Sprintf("honest %d", slot)
		honest = append(honest, what)
		frames = append(frames, rawFrame(GuestMAC, TapMAC, netip.MustParseAddr(GuestIP), netip.MustParseAddr(publicServer), what))
		inject(t, guest, frames)
	}
	require.Eventually(t, func() bool { return len(places["outside"].all()) >= 2 }, patience, 10*time.Millisecond, "the honest frames")
	time.Sleep(refusal)
	for place, w := range places {
		if place == "outside" {
			assert.ElementsMatch(t, honest, w.all(), place)
		} else {
			assert.Empty(t, w.all(), place)
		}
	}
}

// TestN09_TwoGuestsReachTheInternetByName and nothing else: every port of every address of the host, the
// other guest's addresses, metadata and private ranges stay closed in both directions.
func TestN09_TwoGuestsReachTheInternetByName(t *testing.T) {
	z := zone{"server.test.": {a(publicServer)}}
	h, outside := newNamedHost(t, z, time.Minute)
	z.serve(t, outside, resolverIP+":53")
	// Services as the agent and the control plane are: one on every address, one on loopback alone.
	const agentPort, localPort = "3003", "3000"
	shell(t, "ip link set lo up")
	t.Cleanup(func() { shell(t, "ip link set lo down") })
	serveEcho(t, nil, "0.0.0.0:"+agentPort)
	serveEcho(t, nil, "127.0.0.1:"+localPort)
	serveEcho(t, nil, "0.0.0.0:"+echoPort)
	guests := map[Slot]*netns.Handle{
		81: newSandbox(t, h, 81, Policy{AllowInternet: true}),
		82: newSandbox(t, h, 82, policy(t, "server.test")),
	}
	var hostAddresses []string
	for _, cidr := range addresses(t, nil, unix.AF_INET) {
		ip, _, _ := strings.Cut(cidr, "/")
		hostAddresses = append(hostAddresses, ip)
	}
	require.Contains(t, hostAddresses, Slot(81).VethIP().String())
	for slot, guest := range guests {
		found, err := lookup(guest, "", resolverIP+":53", "server.test.")
		require.NoError(t, err, "slot %d", slot)
		require.Len(t, found, 1)
		assertReaches(t, guest, found[0].Unmap().String(), hostUplink)
		_, err = lookup(guest, "", resolverIP+":53", "nosuch.test.")
		require.Error(t, err)

		barred := at(append(append(all(81), all(82)...), forbidden...)...)
		for _, ip := range hostAddresses {
			if ip == "127.0.0.1" {
				continue // in the guest that is the guest
			}
			for _, port := range []string{agentPort, localPort, echoPort} {
				barred = append(barred, net.JoinHostPort(ip, port))
			}
		}
		assertBarred(t, guest, barred...)
	}
}
