package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

func TestParseCmdline(t *testing.T) {
	got, err := parseCmdline("console=ttyS0 quiet reboot=k root=/dev/vda rw wrenn.ip=169.254.0.21/30 " +
		"wrenn.gw=169.254.0.22 wrenn.dns=1.2.3.4,2001:db8::1, wrenn.hostname=sbx wrenn.other=1\n")
	require.NoError(t, err)
	assert.Equal(t, config{
		root:     "/dev/vda",
		address:  netip.MustParsePrefix("169.254.0.21/30"),
		gateway:  netip.MustParseAddr("169.254.0.22"),
		dns:      []netip.Addr{netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("2001:db8::1")},
		hostname: "sbx",
	}, got)

	got, err = parseCmdline("quiet")
	require.NoError(t, err)
	assert.Equal(t, config{}, got, "no root= asks for the probe")

	got, err = parseCmdline("root=/dev/vda rw root=/dev/vdb ro")
	require.NoError(t, err)
	assert.Equal(t, config{root: "/dev/vdb", readOnly: true}, got, "the last of two counts")
}

func TestParseCmdlineRefuses(t *testing.T) {
	for _, arg := range []string{
		"root=LABEL=x", "root=", "wrenn.ip=169.254.0.21", "wrenn.ip=fe80::1/64", "wrenn.ip=a/30", "wrenn.gw=",
		"wrenn.gw=fe80::1", "wrenn.dns=1.2.3.4,x", "wrenn.hostname=" + strings.Repeat("a", 65),
	} {
		_, err := parseCmdline("quiet " + arg)
		assert.ErrorContains(t, err, "kernel argument "+arg)
	}
}

func TestIdentity(t *testing.T) {
	root := t.TempDir()
	etc := filepath.Join(root, "etc")
	require.NoError(t, os.Mkdir(etc, 0o755))
	outside := filepath.Join(root, "outside")
	require.NoError(t, os.WriteFile(outside, []byte("untouched"), 0o644))
	require.NoError(t, os.Symlink(outside, filepath.Join(etc, "resolv.conf")))
	require.NoError(t, os.WriteFile(filepath.Join(etc, "machine-id"), []byte("\n"), 0o644))

	// No hostname here: this process shares its own with the machine.
	c := config{dns: []netip.Addr{netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("5.6.7.8")}}
	require.Empty(t, setUpIdentity(root, c))
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(etc, name))
		require.NoError(t, err)
		return string(b)
	}
	assert.Equal(t, "nameserver 1.2.3.4\nnameserver 5.6.7.8\n", read("resolv.conf"))
	kept, err := os.ReadFile(outside)
	require.NoError(t, err)
	assert.Equal(t, "untouched", string(kept), "a link must be replaced, not followed")

	id := read("machine-id")
	assert.Regexp(t, regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`), id)
	require.Empty(t, setUpIdentity(root, c))
	assert.Equal(t, id, read("machine-id"), "a second boot keeps the identity")
	assert.Contains(t, hosts("sbx"), "127.0.1.1\tsbx\n")

	errs := setUpIdentity(filepath.Join(root, "none"), c)
	assert.Len(t, errs, 2, "a disk that cannot be written is reported, file by file")
}

func TestMachineIDsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		id, err := newMachineID()
		require.NoError(t, err)
		seen[id] = true
	}
	assert.Len(t, seen, 100)
}

// inNewNetns runs f on a thread in a network namespace of its own. The thread is never unlocked, so
// the runtime ends it, and the namespace with it.
func inNewNetns(t *testing.T, f func()) {
	t.Helper()
	need.Root(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if assert.NoError(t, unix.Unshare(unix.CLONE_NEWNET)) {
			f()
		}
	}()
	<-done
}

func TestSetUpNetwork(t *testing.T) {
	c := config{address: netip.MustParsePrefix("169.254.0.21/30"), gateway: netip.MustParseAddr("169.254.0.22")}
	inNewNetns(t, func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}
		if !assert.NoError(t, netlink.LinkAdd(veth)) || !assert.NoError(t, setUpNetwork(c)) {
			return
		}
		for _, name := range []string{"lo", "eth0"} {
			link, err := netlink.LinkByName(name)
			if assert.NoError(t, err) {
				assert.NotZero(t, link.Attrs().RawFlags&unix.IFF_UP, "%s is down", name)
			}
		}
		addrs, err := netlink.AddrList(veth, netlink.FAMILY_V4)
		assert.NoError(t, err)
		if assert.Len(t, addrs, 1) {
			assert.Equal(t, "169.254.0.21/30", addrs[0].IPNet.String())
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		assert.NoError(t, err)
		if assert.Len(t, routes, 2) {
			assert.Equal(t, "169.254.0.22", routes[0].Gw.String())
		}
	})
}

func TestSetUpNetworkFails(t *testing.T) {
	c := config{address: netip.MustParsePrefix("169.254.0.21/30")}
	inNewNetns(t, func() {
		assert.ErrorContains(t, setUpNetwork(c), "set address 169.254.0.21/30 on eth0: no such device")
		assert.NoError(t, setUpNetwork(config{}), "a guest without a network has loopback alone")
	})
}

func TestReapReturnsWhenEnvdEndsAndNotBefore(t *testing.T) {
	start := func(script string) int {
		pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{})
		require.NoError(t, err)
		return pid
	}
	start("exit 0") // some other child, dead first
	assert.EqualError(t, reap(start("sleep 0.2; exit 3")), "envd ended: exit status 3")
	assert.EqualError(t, reap(start("kill -9 $$")), "envd ended: killed by SIGKILL")
	assert.ErrorContains(t, reap(-7), "wait for children", "without children there is nothing to wait for")
}

func TestWaitForDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vda")
	assert.EqualError(t, waitForDevice(path, 20*time.Millisecond), "root device "+path+" did not appear in 20ms")
	go func() {
		time.Sleep(50 * time.Millisecond)
		_ = os.WriteFile(path, nil, 0o600)
	}()
	assert.NoError(t, waitForDevice(path, rootWait))
}

func TestInMemory(t *testing.T) {
	for path, want := range map[string]bool{"/dev/shm": true, "/proc": false} {
		got, err := inMemory(path)
		require.NoError(t, err)
		assert.Equal(t, want, got, path)
	}
	_, err := inMemory(filepath.Join(t.TempDir(), "none"))
	assert.ErrorIs(t, err, os.ErrNotExist)
}
