package harness

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Census is what exists on the host that Wrenn could have made, by kind, each list sorted.
type Census map[string][]string

// counters are what differs between two listings of the same rules.
var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// Take lists network namespaces, links, addresses, routes, iptables rules, mounts, VMM processes, and
// ip_forward.
func Take(tb testing.TB) Census {
	tb.Helper()
	c := Census{
		"netns":   entries(tb, "/run/netns"),
		"forward": {read(tb, "/proc/sys/net/ipv4/ip_forward")},
		"vmms":    vmms(tb),
		"mounts":  mounts(tb),
	}
	for kind, args := range map[string][]string{
		"links":     {"ip", "-br", "link"},
		"addresses": {"ip", "-br", "addr"},
		"routes":    {"ip", "route", "show", "table", "all"},
		"iptables":  {"iptables-save"},
	} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		require.NoError(tb, err, "%v", args)
		c[kind] = rules(string(out))
	}
	return c
}

// rules drops comments and counters, and tables that hold nothing but built-in chains: iptables makes
// those when it only looks at them.
func rules(listing string) []string {
	var out []string
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

// Same asserts that nothing was added to the host or taken from it since c, within a few seconds that the
// kernel may need to finish a removal.
func (c Census) Same(tb testing.TB) {
	tb.Helper()
	assert.EventuallyWithT(tb, func(t *assert.CollectT) {
		now := Take(tb)
		for kind, before := range c {
			assert.Equal(t, before, now[kind], "%s are not as they were", kind)
		}
	}, 10*time.Second, 200*time.Millisecond)
}

func entries(tb testing.TB, dir string) []string {
	found, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return []string{}
	}
	require.NoError(tb, err)
	names := []string{}
	for _, e := range found {
		names = append(names, e.Name())
	}
	return names
}

func mounts(tb testing.TB) []string {
	out := []string{}
	for line := range strings.Lines(read(tb, "/proc/self/mountinfo")) {
		out = append(out, strings.Fields(line)[4])
	}
	slices.Sort(out)
	return out
}

// vmms lists the processes that run a guest for an agent.
func vmms(tb testing.TB) []string {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(tb, err)
	out := []string{}
	for _, path := range found {
		cmdline, err := os.ReadFile(path)
		// Those of other tests run in temporary directories of their own, with other names.
		if err == nil && bytes.Contains(cmdline, []byte("\x00--api-sock\x00")) && bytes.Contains(cmdline, []byte("/wrenn-")) {
			out = append(out, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	slices.Sort(out)
	return out
}

func read(tb testing.TB, path string) string {
	tb.Helper()
	data, err := os.ReadFile(path)
	require.NoError(tb, err)
	return strings.TrimSpace(string(data))
}
