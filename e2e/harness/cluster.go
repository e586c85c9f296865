package harness

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"wrenn/impl/need"
)

// Cluster is a control plane on a Host of its own and agents on as many others, each joined to it by a veth
// pair. The agents' default route leads to the control plane's host.
type Cluster struct {
	API
	// Head is the control plane's host and ControlPlane its process.
	Head         *Host
	ControlPlane *Process
	// Nodes are the agents, in the order of their names: node0, node1, ...
	Nodes []*Node

	dir string
}

// Node is one agent's host.
type Node struct {
	*Host
	// Agent is its present life; Restart makes the next.
	Agent *Agent
}

// reconcile is the pause between two comparisons of a Cluster's store and agents: short, so that tests need
// not wait.
const reconcile = 300 * time.Millisecond

// ClusterConfig says what a Cluster is made of.
type ClusterConfig struct {
	// Nodes is the number of agents.
	Nodes int
	// AgentFlags and ControlPlaneFlags are further flags of the programs.
	AgentFlags, ControlPlaneFlags []string
	// Prepare is called with each host before anything is started on it; may be nil.
	Prepare func(*Host)
}

// StartCluster starts n agents, with further flags, and a control plane that knows them.
func StartCluster(tb testing.TB, n int, flags ...string) *Cluster {
	tb.Helper()
	return StartClusterWith(tb, ClusterConfig{Nodes: n, AgentFlags: flags})
}

// StartClusterWith starts agents and a control plane that knows them.
func StartClusterWith(tb testing.TB, cfg ClusterConfig) *Cluster {
	tb.Helper()
	c := &Cluster{API: API{tb: tb}, Head: NewHost(tb, "head"), dir: Dir(tb)}
	c.host = c.Head
	if cfg.Prepare == nil {
		cfg.Prepare = func(*Host) {}
	}
	cfg.Prepare(c.Head)
	var agents []string
	for i := range cfg.Nodes {
		node := &Node{Host: NewHost(tb, fmt.Sprintf("node%d", i))}
		cfg.Prepare(node.Host)
		here, there := Join(tb, c.Head, node.Host, i)
		node.Must(func() error { return netlink.RouteAdd(&netlink.Route{Gw: here.AsSlice()}) })
		// One after the other: the first keeps the verdicts on VMMs for all.
		node.Agent = node.StartAgent(AgentConfig{Listen: there.String() + ":3003", Flags: cfg.AgentFlags})
		agents = append(agents, node.Name+"="+node.Agent.Token+"@http://"+node.Agent.Listen)
		c.Nodes = append(c.Nodes, node)
	}
	c.startControlPlane(agents, cfg.ControlPlaneFlags)
	return c
}

func (c *Cluster) startControlPlane(agents, flags []string) {
	c.tb.Helper()
	program := need.File(c.tb, "build", Build(c.tb, "bin/wrenn-cp"), "run `make build`")
	database := c.dir + "/wrenn.db"
	c.APIURL, c.SandboxURL = "http://127.0.0.1:3000", "http://127.0.0.1:3002"
	c.APIKey = strings.TrimSpace(c.Head.Run(program, "new-key", "test", "--database", database))
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	args := append([]string{
		"--database", database, "--secret", hex.EncodeToString(secret), "--agents", strings.Join(agents, ","),
		"--reconcile", reconcile.String(),
	}, flags...)
	c.ControlPlane = c.Head.start(c.tb, "control plane", exec.Command(program, args...))
	c.Head.keepsFilesIn(c.dir)
	deadline := time.Now().Add(Patience)
	for !c.healthy() {
		select {
		case <-c.ControlPlane.Done():
			require.FailNow(c.tb, "the control plane ended at its start", "%s", c.ControlPlane.Log())
		case <-time.After(20 * time.Millisecond):
		}
		require.True(c.tb, time.Now().Before(deadline), "the control plane does not serve after %v", Patience)
	}
	c.connect()
}

// Restart starts the next life of the node's agent, which has ended, and waits until it serves.
func (n *Node) Restart() {
	n.tb.Helper()
	n.Agent = n.StartAgent(n.Agent.AgentConfig)
}

// links is where the two ends of veth pairs between Hosts have their addresses, /31 each. The range is for
// tests of networks (RFC 2544), so no sandbox meets it.
var links = netip.MustParsePrefix("198.18.0.0/24")

// Join makes a veth pair, the number-th (0 to 127; a Cluster's nodes have the first), between two hosts and
// returns the two ends' addresses. The end on a is named "to-" and b's name, the one on b "uplink".
func Join(tb testing.TB, a, b *Host, number int) (here, there netip.Addr) {
	tb.Helper()
	raw := links.Addr().As4()
	raw[3] = byte(2 * number)
	here = netip.AddrFrom4(raw)
	there = here.Next()
	name := fmt.Sprintf("to-%s", b.Name)
	a.Must(func() error {
		file, err := b.netns()
		if err != nil {
			return err
		}
		pair := netlink.NewVeth(netlink.LinkAttrs{Name: name})
		pair.PeerName, pair.PeerNamespace = "uplink", netlink.NsFd(file.Fd())
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return raise(name, here)
	})
	b.Must(func() error { return raise("uplink", there) })
	// The kernel notices the carrier a moment after; a census before that would see another link.
	require.Eventually(tb, func() bool { return isUp(tb, a, name) && isUp(tb, b, "uplink") }, Patience, 5*time.Millisecond,
		"the link between two hosts has no carrier")
	return here, there
}

func isUp(tb testing.TB, h *Host, link string) bool {
	up := false
	assert.NoError(tb, h.Do(func() error {
		found, err := netlink.LinkByName(link)
		up = err == nil && found.Attrs().OperState == netlink.OperUp
		return err
	}))
	return up
}

// raise gives a link an address and brings it up. It gets no IPv6, whose addresses come a second later.
func raise(name string, addr netip.Addr) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	net, err := netlink.ParseIPNet(addr.String() + "/31")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: net}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}
