package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
	"wrenn/impl/netns"
)

func TestNewHostRefusesWhatCannotWork(t *testing.T) {
	need.Program(t, "iptables")
	good := newHost(t).cfg
	for name, spoil := range map[string]func(*Config){
		"no logger":             func(c *Config) { c.Logger = nil },
		"no directory":          func(c *Config) { c.Dir = "" },
		"a missing directory":   func(c *Config) { c.Dir += "/missing" },
		"too many resolvers":    func(c *Config) { c.Resolvers = append(c.Resolvers, c.Resolvers[0], c.Resolvers[0], c.Resolvers[0]) },
		"a loopback resolver":   func(c *Config) { c.Resolvers = append(c.Resolvers[:0:0], netip.MustParseAddr("127.0.0.53")) },
		"resolver in our range": func(c *Config) { c.Resolvers = append(c.Resolvers[:0:0], Slot(1).HostIP()) },
	} {
		cfg := good
		spoil(&cfg)
		_, err := NewHost(cfg)
		assert.Error(t, err, name)
	}
}

// foreign plants rules that look much like ours, in the same tables.
func foreign(t *testing.T) {
	t.Helper()
	shell(t, `
		iptables -w -N WRENN-FORWARDER
		iptables -w -A FORWARD -j WRENN-FORWARDER
		iptables -w -A WRENN-FORWARDER -i wrenn-vethx -j DROP
		iptables -w -A INPUT -i wrenn-veth+ -p icmp -j ACCEPT
		iptables -w -t nat -A POSTROUTING -s 10.12.0.0/16 -o dummy9 -j MASQUERADE
		iptables -w -t mangle -A PREROUTING -i wrenn-veth+ -j MARK --set-mark 7`)
	t.Cleanup(func() {
		shell(t, `
			iptables -w -D FORWARD -j WRENN-FORWARDER
			iptables -w -F WRENN-FORWARDER
			iptables -w -X WRENN-FORWARDER
			iptables -w -D INPUT -i wrenn-veth+ -p icmp -j ACCEPT
			iptables -w -t nat -D POSTROUTING -s 10.12.0.0/16 -o dummy9 -j MASQUERADE
			iptables -w -t mangle -D PREROUTING -i wrenn-veth+ -j MARK --set-mark 7`)
	})
}

func TestN03_SetupAndTeardownLeaveOthersAlone(t *testing.T) {
	h := newHost(t)
	for _, tc := range []struct {
		name  string
		plant func(*testing.T)
	}{{"empty host", func(*testing.T) {}}, {"foreign rules", foreign}} {
		t.Run(tc.name, func(t *testing.T) {
			tc.plant(t)
			before := census(t)
			require.NoError(t, h.Teardown(t.Context()), "nothing is set up")
			require.Equal(t, before, census(t))

			require.NoError(t, h.Setup(t.Context()))
			installed := rules(t)
			require.Contains(t, installed, "WRENN-POSTROUTING")
			for line := range strings.Lines(before) {
				if strings.HasPrefix(line, "-A") {
					assert.Contains(t, installed, line)
				}
			}
			require.NoError(t, h.Setup(t.Context()))
			assert.Equal(t, installed, rules(t), "the second Setup changed something")

			require.NoError(t, h.Teardown(t.Context()))
			assert.Equal(t, before, census(t))
			require.NoError(t, h.Teardown(t.Context()))
			assert.Equal(t, before, census(t))
		})
	}
}

func TestN03_SetupRepairsWhatACrashOrAnotherVersionLeft(t *testing.T) {
	h := newHost(t)
	before := census(t)
	require.NoError(t, h.Setup(t.Context()))
	want := rules(t)
	for name, damage := range map[string]string{
		"a chain without its rules":     `iptables -w -F WRENN-FORWARD`,
		"a rule too few":                `iptables -w -D WRENN-FORWARD 3`,
		"rules too many":                `iptables -w -I WRENN-FORWARD 2 -j RETURN; iptables -w -A WRENN-INPUT -j RETURN`,
		"another order":                 `iptables -w -D WRENN-INPUT 3; iptables -w -I WRENN-INPUT 1 -i wrenn-veth+ -j DROP`,
		"no jump":                       `iptables -w -D FORWARD -j WRENN-FORWARD`,
		"the jump too often":            `iptables -w -A INPUT -j WRENN-INPUT; iptables -w -A INPUT -j WRENN-INPUT`,
		"chains gone":                   `iptables -w -t nat -F POSTROUTING; iptables -w -t nat -F WRENN-POSTROUTING; iptables -w -t nat -X WRENN-POSTROUTING`,
		"rules for resolvers of before": `iptables -w -I WRENN-DNS -d 192.0.2.99/32 -p udp -m udp --dport 53 -j ACCEPT`,
	} {
		t.Run(name, func(t *testing.T) {
			shell(t, damage)
			require.NotEqual(t, want, rules(t))
			require.NoError(t, h.Setup(t.Context()))
			assert.Equal(t, want, rules(t))
		})
	}
	t.Run("the jump is not the first", func(t *testing.T) {
		shell(t, `iptables -w -I FORWARD 1 -s 192.0.2.1/32 -j ACCEPT`)
		require.NoError(t, h.Setup(t.Context()))
		assert.True(t, strings.HasPrefix(run(t, "iptables", "-w", "-S", "FORWARD", "1"), "-A FORWARD -j WRENN-FORWARD"))
		shell(t, `iptables -w -D FORWARD -s 192.0.2.1/32 -j ACCEPT`)
		assert.Equal(t, want, rules(t))
	})
	require.NoError(t, h.Teardown(t.Context()))
	assert.Equal(t, before, census(t))
}

func forwarding(t *testing.T) string {
	t.Helper()
	now, err := readSetting(ipForward)
	require.NoError(t, err)
	return now
}

func TestN03_ForwardingIsPutBack(t *testing.T) {
	need.Root(t)
	for _, was := range []string{"0", "1"} {
		t.Run("from "+was, func(t *testing.T) {
			h := newHost(t)
			require.NoError(t, writeSetting(ipForward, was))
			defer writeSetting(ipForward, "0")
			require.NoError(t, h.Setup(t.Context()))
			assert.Equal(t, "1", forwarding(t))

			// The process ends without Teardown; its successor finds forwarding on, and our note.
			successor, err := NewHost(h.cfg)
			require.NoError(t, err)
			require.NoError(t, successor.Setup(t.Context()))
			require.NoError(t, successor.Teardown(t.Context()))
			assert.Equal(t, was, forwarding(t))
			assert.NoFileExists(t, successor.notePath())
		})
	}
	t.Run("a note of another boot means nothing", func(t *testing.T) {
		h := newHost(t)
		require.NoError(t, writeSetting(ipForward, "1"))
		defer writeSetting(ipForward, "0")
		require.NoError(t, h.writeNote(hostNote{BootID: "another", IPForward: "0"}))
		require.NoError(t, h.Teardown(t.Context()))
		assert.Equal(t, "1", forwarding(t), "Teardown without Setup")
		require.NoError(t, h.writeNote(hostNote{BootID: "another", IPForward: "0"}))
		require.NoError(t, h.Setup(t.Context()))
		require.NoError(t, h.Teardown(t.Context()))
		assert.Equal(t, "1", forwarding(t))
	})
	t.Run("a torn note is an error that names it", func(t *testing.T) {
		h := newHost(t)
		require.NoError(t, os.WriteFile(h.notePath(), []byte(`{"boot`), 0o600))
		require.ErrorContains(t, h.Setup(t.Context()), "note of the host")
		require.NoError(t, os.Remove(h.notePath()))
		require.NoError(t, h.Teardown(t.Context()))
	})
}

// TestN03_ForwardingIsPutBackWhateverCameBetween: a crash is a host whose Teardown never runs, and "off" and
// "on" are somebody else.
func TestN03_ForwardingIsPutBackWhateverCameBetween(t *testing.T) {
	need.Root(t)
	for _, tc := range []struct{ was, events, end string }{
		{"0", "setup crash setup crash setup teardown", "0"},
		{"1", "setup crash setup crash setup teardown", "1"},
		{"0", "setup off crash setup teardown", "0"},
		{"1", "setup off teardown", "0"},
		{"1", "setup crash off setup teardown", "0"},
		{"1", "setup off crash setup crash setup teardown", "0"},
		{"0", "setup teardown on setup teardown", "1"},
		{"0", "setup crash setup teardown on setup crash setup teardown", "1"},
		{"0", "setup teardown teardown on teardown", "1"},
	} {
		t.Run(tc.was+" "+tc.events, func(t *testing.T) {
			h := newHost(t)
			require.NoError(t, writeSetting(ipForward, tc.was))
			defer writeSetting(ipForward, "0")
			for _, event := range strings.Fields(tc.events) {
				var err error
				switch event {
				case "setup":
					err = h.Setup(t.Context())
					require.Equal(t, "1", forwarding(t))
				case "teardown":
					err = h.Teardown(t.Context())
				case "crash":
					h, err = NewHost(h.cfg)
				case "off":
					err = writeSetting(ipForward, "0")
				case "on":
					err = writeSetting(ipForward, "1")
				}
				require.NoError(t, err, event)
			}
			assert.Equal(t, tc.end, forwarding(t))
			assert.NoFileExists(t, h.notePath())
		})
	}
}

func TestN03_TheFolderOfNamespacesIsPutBack(t *testing.T) {
	for _, was := range []bool{false, true} {
		h := newHost(t)
		require.NoError(t, netns.Unprepare())
		if was {
			ns, err := netns.Create("of-another-program")
			require.NoError(t, err)
			require.NoError(t, errors.Join(ns.Close(), netns.Delete("of-another-program")))
		}
		require.NoError(t, h.Setup(t.Context()))
		during, err := netns.Prepared()
		require.NoError(t, err)
		assert.True(t, during, "the first sandbox would change the mount table")
		require.NoError(t, h.CreateNetwork(t.Context(), 68, Policy{}))
		require.NoError(t, h.RemoveNetwork(t.Context(), 68))
		require.NoError(t, h.Teardown(t.Context()))
		after, err := netns.Prepared()
		require.NoError(t, err)
		assert.Equal(t, was, after)
	}
}

func TestN10_RulesOfTheHostDoNotGrow(t *testing.T) {
	h := setUp(t)
	before := rules(t)
	for slot := Slot(40); slot < 50; slot++ {
		require.NoError(t, h.CreateNetwork(t.Context(), slot, Policy{AllowInternet: true}))
		t.Cleanup(func() { require.NoError(t, h.RemoveNetwork(backgroundOf(t), slot)) })
	}
	assert.Equal(t, before, rules(t))
}

// Every call waits for the lock: with another holder of it, calls without -w fail at once.
func TestN10_ManySetupsAtOnce(t *testing.T) {
	h := setUp(t)
	want := rules(t)
	errs := make(chan error, 8)
	for i := range cap(errs) {
		go func() {
			if i%2 == 0 {
				errs <- h.Setup(t.Context())
				return
			}
			spec := []string{"-s", fmt.Sprintf("192.0.2.%d/32", i), "-j", "ACCEPT"}
			if err := h.ipt.Append("filter", "OUTPUT", spec...); err != nil {
				errs <- err
				return
			}
			errs <- h.ipt.Delete("filter", "OUTPUT", spec...)
		}()
	}
	for range cap(errs) {
		assert.NoError(t, <-errs)
	}
	assert.Equal(t, want, rules(t))
}
