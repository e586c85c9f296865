// Package ground is what terminals are measured on: a control plane and an agent, each on a host of its own
// made of namespaces, one sandbox with servers that make traffic, a client behind a slow link, and beside
// them the design that Wrenn replaces and rulers that everybody knows.
package ground

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/need"
)

// VMMEnv names the variable that picks the VMM: empty for the one without VMs (e2e/harness/procvmm), upon
// which what is measured is the transport alone; "auto" for the first that boots a guest, as the agent finds
// it; or one of the agent's own names (firecracker, qemu-kvm, qemu-tcg).
const VMMEnv = "WRENN_BENCH_VMM"

// VMM is the choice of VMMEnv, for reports.
func VMM() string {
	if vmm := os.Getenv(VMMEnv); vmm != "" {
		return vmm
	}
	return "procvmm"
}

// wait bounds each wait for something that takes milliseconds on an idle machine.
const wait = 30 * time.Second

// Ports of the programs beside ours. The first two are bench/actor's guest servers.
const (
	httpPort     = 8888
	echoPort     = 7007
	echoPTYPort  = 7008
	envdPort     = 49983
	apiPort      = 3000
	proxyPort    = 3002
	sharedPort   = 4002 // both hops of the one-connection design
	rawPort      = 5001 // both relays to the guest's echo
	rawPTYPort   = 5002 // both relays to the guest's terminal
	guestSSHPort = 5003 // both relays to OpenSSH in the guest
	sshPort      = 2222
	webttyPort   = 7681
)

// Config varies a Ground.
type Config struct {
	// Congestion is the TCP congestion control of all connections between hosts; empty for the machine's.
	Congestion string
	// Bands lets packets of sockets with a higher priority (SO_PRIORITY) pass others in the slow link's queue, as
	// Linux's pfifo_fast does, which is many hosts' default.
	Bands bool
	// Egress is what the guest may send in bytes per second; zero for the agent's default, which uses two processors up.
	Egress int
	// Unpaced leaves what the client is sent in bulk to TCP alone.
	Unpaced bool
	// App is one of the templates of `make apps`, which the sandbox is made of, as a real VM whatever VMMEnv says.
	App string
}

// Ground is ready when it is made, and gone when the test ends.
type Ground struct {
	*harness.Cluster
	// Client is the host at the far end of the slow link.
	Client *harness.Host
	// Box is the sandbox, and Guest the address at which its agent's host reaches it.
	Box   apiclient.Sandbox
	Guest netip.Addr
	// Slow is the link at whose near end the control plane has HeadAddr.
	HeadAddr netip.Addr

	tb      testing.TB
	program string // bench/actor
	dir     string
	once    map[string]*sync.Once
	doors   map[*harness.Host]*visitor
}

// New makes a Ground.
func New(tb testing.TB, cfg Config) *Ground {
	tb.Helper()
	need.Root(tb)
	need.Program(tb, "ip", "tc", "iptables")
	g := &Ground{tb: tb, program: actor(tb), dir: harness.Dir(tb), once: map[string]*sync.Once{}, doors: map[*harness.Host]*visitor{}}
	prepare := func(h *harness.Host) {
		if cfg.Congestion != "" {
			h.Must(func() error {
				return os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(cfg.Congestion), 0)
			})
		}
	}
	flags := []string{"--destroy-at-exit"}
	if cfg.Egress > 0 {
		flags = append(flags, "--egress-rate", strconv.Itoa(cfg.Egress), "--egress-burst", strconv.Itoa(cfg.Egress/2))
	}
	vmm, box := VMM(), apiclient.CreateRequest{TemplateID: "base", Timeout: 3600}
	if cfg.App != "" {
		need.File(tb, "apps", harness.Build(tb, "apps/templates/"+cfg.App+"/rootfs.ext4"), "run `make apps`")
		flags = append(flags, "--image-dir", harness.Build(tb, "apps"))
		vmm, box.TemplateID = "auto", cfg.App
	}
	switch vmm {
	case "procvmm":
		need.File(tb, "kvm", "/dev/kvm", "the agent looks for it before it tries a Firecracker")
		flags = append(flags, "--vmm", "firecracker", "--firecracker", harness.Procvmm(tb))
	case "auto":
	default:
		flags = append(flags, "--vmm", vmm)
	}
	g.Cluster = harness.StartClusterWith(tb, harness.ClusterConfig{
		Nodes: 1, AgentFlags: flags, Prepare: prepare,
		ControlPlaneFlags: []string{"--proxy-listen", fmt.Sprintf("0.0.0.0:%d", proxyPort), "--api-listen", fmt.Sprintf("0.0.0.0:%d", apiPort), fmt.Sprintf("--unpaced=%v", cfg.Unpaced)},
	})
	g.Client = harness.NewHost(tb, "client")
	prepare(g.Client)
	g.HeadAddr, _ = harness.Join(tb, g.Head, g.Client, 1)
	shape(g.Head, "to-client", cfg.Bands)
	shape(g.Client, "uplink", cfg.Bands)
	for _, h := range []*harness.Host{g.Head, g.Client, g.Node()} {
		g.doors[h] = newVisitor(tb, h)
	}
	g.Box = g.CreateWith(box)
	g.findGuest()
	g.startGuest()
	return g
}

// Node is the agent's host.
func (g *Ground) Node() *harness.Host { return g.Nodes[0].Host }

// shape limits what a host sends to 100 Mbit/s. 32 KiB may pass at once, 2.6 ms at that rate, and what does
// not is queued for 50 ms and then dropped, as in the plain queue of a home router or a cloud's limiter.
func shape(h *harness.Host, link string, bands bool) {
	h.Run("tc", "qdisc", "add", "dev", link, "root", "handle", "1:", "tbf", "rate", "100mbit", "burst", "32kb", "latency", "50ms")
	if bands {
		h.Run("tc", "qdisc", "add", "dev", link, "parent", "1:", "handle", "10:", "pfifo_fast")
	}
}

// findGuest reads the guest's address off the agent's routes: it is the only sandbox.
func (g *Ground) findGuest() {
	for line := range strings.Lines(g.Node().Run("ip", "-4", "route")) {
		first, _, _ := strings.Cut(line, " ")
		if addr, err := netip.ParseAddr(first); err == nil && strings.HasPrefix(first, "10.11.") {
			g.Guest = addr
		}
	}
	require.True(g.tb, g.Guest.IsValid(), "the agent's host has no route to a sandbox")
}

// startGuest brings bench/actor into the guest and starts its servers.
func (g *Ground) startGuest() {
	g.tb.Helper()
	ctx, cancel := context.WithTimeout(g.tb.Context(), harness.Patience)
	defer cancel()
	content, err := os.ReadFile(g.program)
	require.NoError(g.tb, err)
	const path = "/home/user/actor"
	require.NoError(g.tb, g.API.Guest(g.Box).WriteFile(ctx, "user", path, bytes.NewReader(content), int64(len(content))))
	g.Exec(g.Box, "sh", "-c", "chmod +x "+path+" && setsid "+path+" guest </dev/null >/dev/null 2>&1 &")
	g.await(g.Node(), netip.AddrPortFrom(g.Guest, httpPort))
}

// Play starts bench/actor on a host and waits until it accepts connections at addr; empty for no wait.
func (g *Ground) Play(h *harness.Host, addr netip.AddrPort, args ...string) *harness.Process {
	g.tb.Helper()
	p := h.Launch("actor "+args[0]+" on "+h.Name, g.command(g.program, args...))
	g.await(h, addr)
	return p
}

// command is a program that the host's end ends, not the test's context.
func (g *Ground) command(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(context.WithoutCancel(g.tb.Context()), name, args...)
}

// await waits until something accepts connections.
func (g *Ground) await(h *harness.Host, addr netip.AddrPort) {
	g.tb.Helper()
	require.Eventually(g.tb, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn, err := g.doors[h].DialContext(ctx, "tcp", addr.String())
		return err == nil && conn.Close() == nil
	}, wait, 10*time.Millisecond, "nothing accepts at %s", addr)
}

// do runs fn once per Ground for a name.
func (g *Ground) do(name string, fn func()) {
	if g.once[name] == nil {
		g.once[name] = new(sync.Once)
	}
	g.once[name].Do(fn)
}

// Link is a way of the client to the control plane.
type Link struct {
	Name string
	// From is where the client is, and Head what it calls the control plane's host.
	From *harness.Host
	Head netip.Addr

	visit *visitor
}

// DialContext connects from the client's end; the address must be numeric.
func (l Link) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.visit.DialContext(ctx, network, addr)
}

// Loopback is the link of a client on the control plane's host.
func (g *Ground) Loopback() Link {
	return Link{"loopback", g.Head, netip.AddrFrom4([4]byte{127, 0, 0, 1}), g.doors[g.Head]}
}

// Slow is the link of 100 Mbit/s.
func (g *Ground) Slow() Link { return Link{"100mbit", g.Client, g.HeadAddr, g.doors[g.Client]} }

// Inside is the link of a client on the agent's host, which reaches the agent and guests directly.
func (g *Ground) Inside() Link {
	return Link{"inside", g.Node(), netip.MustParseAddrPort(g.Nodes[0].Agent.Listen).Addr(), g.doors[g.Node()]}
}
