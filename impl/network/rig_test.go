package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
	"wrenn/impl/netns"
)

// The world of these tests, all inside the namespaces of the test process:
//
//	guest netns ── frames pumped between two TAPs ── slot's netns ── veth ── host ── uplink ── outside netns
//
// The outside has no route to any of our ranges, so answers come back only if the host translates.
const (
	hostUplink    = "203.0.113.1"
	outsideUplink = "203.0.113.2"
	publicServer  = "198.51.100.80"
	resolverIP    = "10.255.255.53"
	echoPort      = "7"
	// patience is for what must happen, refusal for what must not: a packet here takes far under a
	// millisecond, and TCP repeats a lost SYN after 1 s.
	patience = 10 * time.Second
	refusal  = 400 * time.Millisecond
)

// forbidden are addresses that the outside really answers on, as the tests' controls show.
var forbidden = []string{"10.99.0.1", "172.16.9.9", "192.168.7.7", "100.64.1.1", "169.254.169.254"}

func newHost(tb testing.TB) *Host {
	tb.Helper()
	need.Root(tb)
	need.Program(tb, "iptables", "iptables-save", "ip")
	h, err := NewHost(Config{
		Logger:    slog.New(slog.DiscardHandler),
		Dir:       tb.TempDir(),
		Resolvers: []netip.Addr{netip.MustParseAddr(resolverIP)},
	})
	require.NoError(tb, err)
	return h
}

func setUp(tb testing.TB) *Host {
	tb.Helper()
	h := newHost(tb)
	require.NoError(tb, h.Setup(tb.Context()))
	tb.Cleanup(func() { require.NoError(tb, h.Teardown(backgroundOf(tb))) })
	return h
}

// run executes a program for the set-up of a test; never for what is under test.
func run(tb testing.TB, argv ...string) string {
	tb.Helper()
	out, err := exec.CommandContext(backgroundOf(tb), argv[0], argv[1:]...).CombinedOutput()
	require.NoError(tb, err, "%v: %s", argv, out)
	return string(out)
}

func shell(tb testing.TB, script string) string { tb.Helper(); return run(tb, "sh", "-ec", script) }

// census lists everything that the package may make on a host.
func census(tb testing.TB) string {
	tb.Helper()
	return "links:\n" + shell(tb, `ip -o link | sort -t: -k2`) +
		"addresses:\n" + shell(tb, `ip -o addr`) +
		"namespaces:\n" + shell(tb, `ls /run/netns 2>/dev/null || true`) +
		"routes:\n" + shell(tb, `ip route show table all; ip -6 route show table all`) +
		"rules:\n" + rules(tb) +
		"forwarding: " + shell(tb, `cat /proc/sys/net/ipv4/ip_forward`)
}

// rules is iptables-save without comments, counters and tables that hold nothing but empty built-in
// chains: asking the nft back end about a table makes such a one appear.
func rules(tb testing.TB) string {
	tb.Helper()
	var all, table strings.Builder
	empty := true
	for line := range strings.Lines(run(tb, "iptables-save")) {
		switch {
		case strings.HasPrefix(line, "#"):
			continue
		case strings.HasPrefix(line, ":"):
			fields := strings.Fields(line)
			empty = empty && fields[1] == "ACCEPT"
			line = fields[0] + " " + fields[1] + "\n"
		case strings.HasPrefix(line, "-A"):
			empty = false
		}
		table.WriteString(line)
		if line == "COMMIT\n" {
			if !empty {
				all.WriteString(table.String())
			}
			table.Reset()
			empty = true
		}
	}
	return all.String()
}

func testNetns(tb testing.TB, name string) *netns.Handle {
	tb.Helper()
	ns, err := netns.Create(name)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		require.NoError(tb, ns.Close())
		require.NoError(tb, netns.Delete(name))
	})
	return ns
}

// newOutside makes the internet, the private networks beyond the host, and an echo server on each.
func newOutside(tb testing.TB) *netns.Handle {
	tb.Helper()
	outside := testNetns(tb, "outside")
	shell(tb, `
		ip link set lo up
		ip link add uplink type veth peer name eth0 netns outside
		ip addr add `+hostUplink+`/24 dev uplink
		ip link set uplink up
		ip -n outside link set lo up
		ip -n outside addr add `+outsideUplink+`/24 dev eth0
		ip -n outside link set eth0 up
		ip route add default via `+outsideUplink)
	tb.Cleanup(func() { shell(tb, "ip link del uplink") })
	for _, ip := range append([]string{publicServer, resolverIP}, forbidden...) {
		run(tb, "ip", "-n", "outside", "addr", "add", ip+"/32", "dev", "lo")
	}
	serveEcho(tb, outside, "0.0.0.0:"+echoPort)
	serveEcho(tb, outside, "0.0.0.0:53")
	return outside
}

// in runs fn in ns, or in the host's namespace when ns is nil.
func in(ns *netns.Handle, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}

// serveEcho tells each client the address that it is seen by, on a line, and then echoes.
func serveEcho(tb testing.TB, ns *netns.Handle, addr string) {
	tb.Helper()
	var listener net.Listener
	require.NoError(tb, in(ns, func() (err error) {
		listener, err = net.Listen("tcp4", addr)
		return err
	}))
	// A client's last packets may be lost with its network, so the end of the test ends the servers.
	ended, end := context.WithCancel(context.Background())
	var open sync.WaitGroup
	open.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ended, func() { conn.Close() })()
				host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
				fmt.Fprintln(conn, host)
				io.Copy(conn, conn)
			})
		}
	})
	tb.Cleanup(func() { listener.Close(); end(); open.Wait() })
}

// echo connects from ns to addr and has 256 KiB echoed; it returns the address that the server saw.
func echo(ns *netns.Handle, addr string, limit time.Duration) (seenAs string, err error) {
	var conn net.Conn
	if err := in(ns, func() (err error) {
		conn, err = net.DialTimeout("tcp4", addr, limit)
		return err
	}); err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit + patience))
	const size = 256 << 10
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write([]byte(strings.Repeat("x", size)))
		sent <- err
	}()
	defer func() { conn.Close(); <-sent }()
	var line []byte
	for one := make([]byte, 1); one[0] != '\n'; line = append(line, one...) {
		if _, err := io.ReadFull(conn, one); err != nil {
			return "", err
		}
	}
	_, err = io.ReadFull(conn, make([]byte, size))
	return strings.TrimSpace(string(line)), err
}

// newSandbox makes the network of slot and a guest in it that answers on the echo port.
func newSandbox(tb testing.TB, h *Host, slot Slot, policy Policy) *netns.Handle {
	tb.Helper()
	require.NoError(tb, h.CreateNetwork(tb.Context(), slot, policy))
	tb.Cleanup(func() { require.NoError(tb, h.RemoveNetwork(backgroundOf(tb), slot)) })
	return newGuest(tb, slot)
}

// newGuest puts a guest into the network of slot that answers on the echo port.
func newGuest(tb testing.TB, slot Slot) *netns.Handle {
	tb.Helper()
	inner, err := netns.Open(slot.Netns())
	require.NoError(tb, err)
	defer inner.Close()
	name := fmt.Sprintf("guest-%d", slot)
	guest := testNetns(tb, name)
	card, tap := attach(tb, guest, "eth0", firecrackerFlags), attach(tb, inner, TapName, firecrackerFlags)
	join(tb, card, tap)
	shell(tb, fmt.Sprintf(`
		ip -n %[1]s link set lo up
		ip -n %[1]s link set eth0 address %[2]s up
		ip -n %[1]s addr add %[3]s/%[4]d dev eth0
		ip -n %[1]s route add default via %[5]s`, name, GuestMAC, GuestIP, GuestPrefixBits, TapIP))
	serveEcho(tb, guest, "0.0.0.0:"+echoPort)
	return guest
}

// firecrackerFlags are those with which Firecracker opens a TAP.
const firecrackerFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// attach opens a TAP as a VMM does.
func attach(tb testing.TB, ns *netns.Handle, name string, flags uint16) *os.File {
	tb.Helper()
	var file *os.File
	require.NoError(tb, ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	}))
	return file
}

// join carries frames between the two until the test ends.
func join(tb testing.TB, a, b *os.File) {
	tb.Helper()
	var pumps sync.WaitGroup
	pump := func(from, to *os.File) {
		frame := make([]byte, 65536+64)
		for {
			n, err := from.Read(frame)
			if err != nil {
				return
			}
			// A frame for a card that is down is lost, as on a wire.
			_, _ = to.Write(frame[:n])
		}
	}
	pumps.Go(func() { pump(a, b) })
	pumps.Go(func() { pump(b, a) })
	tb.Cleanup(func() { a.Close(); b.Close(); pumps.Wait() })
}

// addresses lists the addresses of one family inside ns, or on the host when ns is nil.
func addresses(tb testing.TB, ns *netns.Handle, family int) []string {
	tb.Helper()
	var found []string
	require.NoError(tb, in(ns, func() error {
		list, err := netlink.AddrList(nil, family)
		for _, a := range list {
			found = append(found, a.String())
		}
		return err
	}))
	return found
}
