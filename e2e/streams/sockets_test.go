package streams_test

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/e2e/harness"
	"wrenn/impl/envdclient"
)

// conn is a TCP connection as a network namespace sees it: the namespace and the two ends, in order.
type conn struct {
	where string
	a, b  netip.AddrPort
}

// traffic is what has passed over each connection, in bytes, both ways, as the kernel counts it. A connection
// within one namespace is counted at both of its ends.
type traffic map[conn]uint64

// count reads the sockets of the calling thread's namespace.
func (t traffic) count(where string) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.SocketDiagTCPInfo(family)
		if err != nil {
			return err
		}
		for _, s := range all {
			if s.TCPInfo == nil || s.InetDiagMsg == nil {
				continue
			}
			id := s.InetDiagMsg.ID
			ends := [2]netip.AddrPort{}
			for i, e := range []struct {
				ip   []byte
				port uint16
			}{{id.Source, id.SourcePort}, {id.Destination, id.DestinationPort}} {
				addr, _ := netip.AddrFromSlice(e.ip)
				ends[i] = netip.AddrPortFrom(addr.Unmap(), e.port)
			}
			if ends[0].Compare(ends[1]) > 0 {
				ends[0], ends[1] = ends[1], ends[0]
			}
			t[conn{where, ends[0], ends[1]}] += s.TCPInfo.Bytes_acked + s.TCPInfo.Bytes_received
		}
	}
	return nil
}

// since returns the connections over which at least most bytes have passed since before.
func (t traffic) since(before traffic, least uint64) map[conn]uint64 {
	out := map[conn]uint64{}
	for c, n := range t {
		if n >= before[c]+least {
			out[c] = n - before[c]
		}
	}
	return out
}

// guestNetns opens the network namespace of the one guest's daemon.
func guestNetns(t *testing.T) *os.File {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/comm")
	require.NoError(t, err)
	for _, path := range found {
		if name, err := os.ReadFile(path); err == nil && string(name) == "envd\n" {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			require.NoError(t, err)
			t.Cleanup(func() { _ = f.Close() })
			return f
		}
	}
	require.Fail(t, "no guest's daemon runs")
	return nil
}

// within runs fn on a thread in a network namespace.
func within(netns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// TestT07_RealSocketsOfTerminalsAndPorts looks at the connections of the real control plane, agent and guest
// while one kind of traffic after the other runs, all three open at the same time: which connections do the
// bytes travel over?
func TestT07_RealSocketsOfTerminalsAndPorts(t *testing.T) {
	c := start(t)
	box := c.Create()
	guest := guestNetns(t)
	take := func() traffic {
		now := traffic{}
		c.Head.Must(func() error { return now.count("control plane") })
		c.Nodes[0].Must(func() error { return now.count("agent") })
		require.NoError(t, within(guest, func() error { return now.count("guest") }))
		return now
	}
	const size, large = 4 << 20, 64 << 20
	flood := fmt.Sprintf("stty raw -echo; echo ready; while read x; do head -c %d /dev/zero; echo; done", size)

	// A terminal by WebSocket, one by Connect over port 49983, and a user's port that is on loopback.
	socket := view(t, c, box, "pty", fmt.Sprintf(`{"type":"start","cmd":"sh","args":["-c",%q]}`, flood))
	socket.until("ready\n")
	rpc, err := c.Guest(box).PTY(socket.ctx, envdclient.PTYRequest{Cmd: "sh", Args: []string{"-c", flood}})
	require.NoError(t, err)
	defer rpc.Close()
	_, err = io.ReadFull(rpc, make([]byte, len("ready\n")))
	require.NoError(t, err)
	view(t, c, box, "exec", `{"type":"start","cmd":"sh","args":["-c",`+strconv.Quote(
		fmt.Sprintf("mkdir /tmp/www; echo > /tmp/www/small; head -c %d /dev/zero > /tmp/www/big; exec python3 -m http.server --bind 127.0.0.1 --directory /tmp/www 8000", large))+`]}`)
	tr := browser(t, c)
	require.Eventually(t, func() bool {
		res, err := get(t, c, tr, box, 8000, "/small")
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK
	}, harness.Patience, 100*time.Millisecond)
	time.Sleep(500 * time.Millisecond) // what is under way arrives

	idle := take()
	time.Sleep(time.Second) // the control plane asks the agent a few times
	start := take()
	planes := map[string]map[conn]uint64{"control": start.since(idle, 1)}
	least := uint64(size / 2) // the last bytes may not be acknowledged yet

	socket.seen.Reset()
	socket.input("go\n")
	for socket.seen.Len() < size+len("\n") {
		_, err := socket.next()
		require.NoError(t, err)
	}
	time.Sleep(500 * time.Millisecond) // the input's own answer, and acknowledgements
	afterSocket := take()
	planes["terminal by WebSocket"] = afterSocket.since(start, least)

	_, err = io.WriteString(rpc, "go\n")
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, rpc, size+1)
	require.NoError(t, err)
	time.Sleep(500 * time.Millisecond)
	afterRPC := take()
	planes["terminal by Connect"] = afterRPC.since(afterSocket, least)

	// A download that is under way while it is looked at: most of it is more than buffers hold.
	res, err := get(t, c, tr, box, 8000, "/big")
	require.NoError(t, err)
	defer res.Body.Close()
	_, err = io.CopyN(io.Discard, res.Body, 2*size)
	require.NoError(t, err)
	afterPort := take()
	planes["port"] = afterPort.since(afterRPC, least)

	for name, conns := range planes {
		for at, n := range conns {
			t.Logf("%-22s %-13s %v - %v: %d bytes", name, at.where, at.a, at.b, n)
		}
	}
	// Client to control plane and on to the agent, each seen on its hosts; agent to guest, before and after
	// the guest's network translates it.
	for name, hops := range map[string]int{"terminal by WebSocket": 5, "terminal by Connect": 5, "port": 5} {
		assert.GreaterOrEqual(t, len(planes[name]), hops, "not every hop of %q was seen", name)
	}
	assert.NotEmpty(t, planes["control"])
	for one, conns := range planes {
		for other, others := range planes {
			for at := range conns {
				if _, shared := others[at]; shared && one != other {
					assert.Fail(t, "a connection is shared", "%s and %s: %s %v - %v", one, other, at.where, at.a, at.b)
				}
			}
		}
	}
	// Not a byte of one kind goes over a connection of another, keystrokes included.
	for at := range afterPort.since(afterRPC, 1) {
		assert.NotContains(t, planes["terminal by WebSocket"], at, "bytes of the port")
		assert.NotContains(t, planes["terminal by Connect"], at, "bytes of the port")
	}
	for at := range afterRPC.since(start, 1) {
		assert.NotContains(t, planes["port"], at, "bytes of a terminal")
	}
}
