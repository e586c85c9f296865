package ground

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// startEnv holds the folder of a ground for a process that only starts one.
const startEnv = "WRENN_GROUND_TEST_START"

func TestMain(m *testing.M) {
	if Held() {
		fmt.Fprintln(os.Stderr, Hold())
		os.Exit(1)
	}
	if dir := os.Getenv(startEnv); dir != "" {
		if _, err := Start(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("started")
		time.Sleep(time.Minute)
	}
	os.Exit(m.Run())
}

func needed(t *testing.T) {
	t.Helper()
	need.Root(t)
	need.Program(t, "libvirtd", "virsh", "nsenter", "ip", "iptables-save")
}

// seen is what a ground could change on this machine.
func seen(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, args := range [][]string{{"ip", "-br", "link"}, {"ip", "route"}, {"iptables-save"}, {"cat", "/proc/sys/net/ipv4/ip_forward", "/proc/self/mountinfo"}} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		require.NoError(t, err, args)
		for line := range strings.Lines(string(out)) {
			// iptables notes the time, and counts packets.
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				all.WriteString(line)
			}
		}
	}
	return all.String()
}

const network = `<network><name>probe</name><forward mode="nat"/><bridge name="virbr-probe"/>
<ip address="192.168.77.1" netmask="255.255.255.0"><dhcp><range start="192.168.77.2" end="192.168.77.9"/></dhcp></ip></network>`

// TestH01_WhatLibvirtMakesStaysInTheGround starts a network with a bridge, rules and a DHCP server in it.
func TestH01_WhatLibvirtMakesStaysInTheGround(t *testing.T) {
	needed(t)
	before, dir := seen(t), t.TempDir()
	g, err := Start(t.Context(), dir)
	require.NoError(t, err)
	defer func() { assert.NoError(t, g.Stop()) }()
	file := filepath.Join(dir, "network.xml")
	require.NoError(t, os.WriteFile(file, []byte(network), 0o644))
	out, err := g.Command(t.Context(), "virsh", "net-create", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = g.Command(t.Context(), "ip", "-br", "link").CombinedOutput()
	require.NoError(t, err)
	assert.Contains(t, string(out), "virbr-probe")
	assert.Equal(t, before, seen(t), "the machine has changed")

	found, err := Find(dir)
	require.NoError(t, err)
	require.Equal(t, g, found)
	holder := g.holder.PID
	require.NoError(t, g.Stop())
	found, err = Find(dir)
	require.NoError(t, err)
	assert.Nil(t, found)
	assert.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join("/proc", fmt.Sprint(holder)))
		return os.IsNotExist(err)
	}, 10*time.Second, 10*time.Millisecond, "the holder lives on")
	assert.NoDirExists(t, filepath.Join(dir, libvirtName))
	assert.Equal(t, before, seen(t))
	require.NoError(t, g.Stop(), "a second time")
}

// TestH01_AGroundOutlivesItsStarterAndIsFound kills the process that started it.
func TestH01_AGroundOutlivesItsStarterAndIsFound(t *testing.T) {
	needed(t)
	dir := t.TempDir()
	starter := exec.Command("/proc/self/exe")
	starter.Env = append(os.Environ(), startEnv+"="+dir)
	out, err := starter.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, starter.Start())
	word := make([]byte, len("started"))
	_, err = out.Read(word)
	require.NoError(t, err)
	require.NoError(t, starter.Process.Signal(syscall.SIGKILL))
	require.Error(t, starter.Wait())

	g, err := Find(dir)
	require.NoError(t, err)
	require.NotNil(t, g)
	require.NoError(t, g.Command(t.Context(), "virsh", "list").Run())
	sleep := g.Command(t.Context(), "sleep", "60")
	require.NoError(t, sleep.Start())
	require.NoError(t, g.Stop())
	require.Error(t, sleep.Wait(), "what ran in the ground was not ended")
}

// TestFindTellsALaterProcessFromTheHolder has a state file of a process that is not it.
func TestFindTellsALaterProcessFromTheHolder(t *testing.T) {
	dir := t.TempDir()
	self, err := identify(os.Getpid())
	require.NoError(t, err)
	g := &Ground{dir: dir, holder: self}
	require.NoError(t, g.write())
	found, err := Find(dir)
	require.NoError(t, err)
	assert.Equal(t, g, found)
	g.holder.Start--
	require.NoError(t, g.write())
	found, err = Find(dir)
	require.NoError(t, err)
	assert.Nil(t, found)
	require.NoError(t, os.WriteFile(filepath.Join(dir, stateName), []byte("{torn"), 0o644))
	_, err = Find(dir)
	assert.ErrorContains(t, err, dir)
}
