//go:build fault

package fault

import (
	"strings"
	"testing"

	"wrenn/e2e/harness"
)

// Two ways out of the host, of which one at a time is its default route.
const (
	wayOut   = "default via 192.0.2.1 dev out0"
	otherWay = "default via 198.51.100.1 dev out1"
)

// plant puts things on a host that are not Wrenn's, under names that are nearly: the agent must leave each
// alone, byte for byte.
func plant(h *harness.Host) {
	for _, name := range []string{"wrenn-ns-x", "wrenn-ns-07", "wrenn-ns-32768", "my-wrenn-ns-5"} {
		h.Run("ip", "netns", "add", name)
	}
	for _, link := range []string{
		"wrenn-vethx type veth peer name mine0", "wrenn-veth02 type veth peer name mine1", "wrenn-veth32768 type veth peer name mine2",
		"out0 type veth peer name mine3", "out1 type veth peer name mine4",
	} {
		h.Run("ip", append([]string{"link", "add"}, strings.Fields(link)...)...)
		f := strings.Fields(link)
		for _, name := range []string{f[0], f[len(f)-1]} {
			h.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/"+name+"/disable_ipv6")
			h.Run("ip", "link", "set", name, "up")
		}
	}
	h.Run("ip", "tuntap", "add", "dev", "wrenn-veth900", "mode", "tap") // a name of ours, but no veth
	for _, args := range []string{
		"ip addr add 192.0.2.2/24 dev out0", "ip addr add 198.51.100.2/24 dev out1", "ip route add " + wayOut,
		"ip route add 10.11.200.1/32 dev out0", "ip route add 203.0.113.0/24 dev out0 proto 217",
		"iptables -N WRENN-FORWARD-MINE", "iptables -N WRENN", "iptables -N MY-WRENN-INPUT",
		"iptables -A WRENN-FORWARD-MINE -i wrenn-veth2 -j ACCEPT", "iptables -A FORWARD -i mine0 -o wrenn-vethx -j ACCEPT",
		"iptables -A INPUT -s 10.12.0.5/32 -i out0 -j DROP", "iptables -A FORWARD -j WRENN",
		"iptables -t nat -N WRENN-NAT", "iptables -t nat -A POSTROUTING -s 10.12.0.0/16 -o out1 -j MASQUERADE",
		"iptables -t nat -A POSTROUTING -d 10.11.0.2/32 -o out0 -j MASQUERADE",
	} {
		f := strings.Fields(args)
		h.Run(f[0], f[1:]...)
	}
}

// tables is what iptables-save prints, without the comments, which hold the time.
func tables(h *harness.Host) string {
	var kept strings.Builder
	for line := range strings.Lines(h.Run("iptables-save")) {
		if !strings.HasPrefix(line, "#") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// moveDefault changes the host's default route, and what the host is compared with.
func (r *rig) moveDefault() {
	r.t.Helper()
	from, to := wayOut, otherWay
	for _, line := range r.empty["routes"] {
		if line == otherWay {
			from, to = otherWay, wayOut
		}
	}
	r.host.Run("ip", append([]string{"route", "replace"}, strings.Fields(to)...)...)
	for _, c := range []harness.Census{r.bare, r.empty, r.base} {
		for i, line := range c["routes"] {
			if line == from {
				c["routes"][i] = to
			}
		}
	}
}

// TestF01_TheDefaultRouteChangesInBetween changes it between the fault and what clears up after it.
func TestF01_TheDefaultRouteChangesInBetween(t *testing.T) {
	r := newRig(t, "route")
	defer r.end()
	r.between = func(here *rig) { here.moveDefault() }
	for _, p := range matrix() {
		if p.moment == "after" && (p.step == "network" || p.step == "netns") {
			t.Run(p.String(), func(t *testing.T) { r.at(t).row(p) })
		}
	}
}
