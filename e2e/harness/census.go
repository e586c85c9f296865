package harness

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Census is what exists on a host that Wrenn could have made, by kind, each list sorted. Numbers that differ
// without a reason (pids, counters, ports that the kernel chose) are left out, so two are comparable.
type Census map[string][]string

// counters are what differs between two listings of the same rules.
var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// Take lists what is on this machine: network namespaces, links, addresses, routes, iptables rules, mounts,
// ip_forward, and of the processes, loop devices, device-mapper devices, cgroups, sockets and files in /run
// those that are Wrenn's.
func Take(tb testing.TB) Census {
	tb.Helper()
	var machine *Host
	c, err := machine.census()
	require.NoError(tb, err)
	return c
}

// Take lists what is on the host: the same kinds as the function Take, but every process and every listening
// socket, and all files in /run and in the directories of what was started there.
func (h *Host) Take() Census {
	h.tb.Helper()
	c, err := h.census()
	require.NoError(h.tb, err)
	return c
}

// settle is how long the kernel and programs may need to finish a removal, ten times over for emulated
// machines.
const settle = 30 * time.Second

// Same asserts that nothing was added to the machine or taken from it since c, once removals have settled.
func (c Census) Same(tb testing.TB) {
	tb.Helper()
	var machine *Host
	machine.same(tb, c)
}

// Same asserts that nothing was added to the host or taken from it since before, once removals have settled.
func (h *Host) Same(before Census) {
	h.tb.Helper()
	h.same(h.tb, before)
}

func (h *Host) same(tb testing.TB, before Census) {
	tb.Helper()
	assert.EventuallyWithT(tb, func(t *assert.CollectT) {
		now, err := h.census()
		require.NoError(t, err)
		for kind, was := range before {
			assert.Equal(t, was, now[kind], "%s are not as they were", kind)
		}
	}, settle, 50*time.Millisecond)
}

// Diff says how now differs from c, a line per object: "+ kind: object", "- kind: object".
func (c Census) Diff(now Census) []string {
	var out []string
	for kind := range now {
		for _, line := range missing(now[kind], c[kind]) {
			out = append(out, "+ "+kind+": "+line)
		}
	}
	for kind := range c {
		for _, line := range missing(c[kind], now[kind]) {
			out = append(out, "- "+kind+": "+line)
		}
	}
	slices.Sort(out)
	return out
}

// missing are those of a that b has not, with their multiplicity.
func missing(a, b []string) []string {
	have := map[string]int{}
	for _, line := range b {
		have[line]++
	}
	var out []string
	for _, line := range a {
		if have[line]--; have[line] < 0 {
			out = append(out, line)
		}
	}
	return out
}

// listings are what programs print of a network namespace.
var listings = map[string][]string{
	"links":     {"ip", "-br", "link"},
	"addresses": {"ip", "-br", "addr"},
	"routes":    {"ip", "route", "show", "table", "all"},
	"rules":     {"ip", "rule", "show"},
	"iptables":  {"iptables-save"},
}

// proc is the directory of a process on the host, by whose files its namespaces are looked at. The first
// process of a Host is number 1 of its own /proc.
func (h *Host) proc() string {
	if h == nil {
		return "/proc/thread-self"
	}
	return "/proc/1"
}

func (h *Host) census() (Census, error) {
	c := Census{}
	err := h.Do(func() error {
		for kind, list := range map[string]func() ([]string, error){
			"netns":     func() ([]string, error) { return names("/run/netns") },
			"forward":   func() ([]string, error) { return lines("/proc/sys/net/ipv4/ip_forward") },
			"mounts":    func() ([]string, error) { return mounts(h.proc()) },
			"vmms":      vmms,
			"processes": h.processes,
			"loops":     h.loops,
			"dm":        mapped,
			"cgroups":   cgroups,
			"sockets":   h.sockets,
			"run":       h.runFiles,
			"files":     h.files,
		} {
			found, err := list()
			if err != nil {
				return fmt.Errorf("census of %s: %w", kind, err)
			}
			slices.Sort(found)
			c[kind] = found
		}
		for kind, args := range listings {
			out, err := exec.Command(args[0], args[1:]...).Output()
			if err != nil {
				return fmt.Errorf("census of %s: %w", kind, err)
			}
			c[kind] = rules(string(out))
		}
		return nil
	})
	return c, err
}

// rules drops comments and counters, and tables that hold nothing but built-in chains: iptables makes
// those when it only looks at them.
func rules(listing string) []string {
	out := []string{}
	for line := range strings.Lines(counters.ReplaceAllString(listing, "")) {
		line = strings.TrimSpace(line)
		builtin := strings.HasPrefix(line, ":") && (strings.Contains(line, " ACCEPT") || strings.Contains(line, " DROP"))
		if line == "" || line == "COMMIT" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "*") || builtin {
			continue
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

func entries(tb testing.TB, dir string) []string {
	tb.Helper()
	found, err := names(dir)
	require.NoError(tb, err)
	return found
}

// names lists a directory, which may be missing.
func names(dir string) ([]string, error) {
	found, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	out := []string{}
	for _, e := range found {
		out = append(out, e.Name())
	}
	return out, nil
}

// lines lists the lines of a file, which may be missing.
func lines(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	out := []string{}
	for line := range strings.Lines(string(data)) {
		out = append(out, strings.TrimSpace(line))
	}
	return out, nil
}
