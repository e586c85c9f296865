package guest_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

const network = " wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22"

func TestProbe(t *testing.T) {
	l := machine{}.boot(t)
	found := regexp.MustCompile(`(?m)^WRENN-PROBE-OK (\S+)\r?$`).FindStringSubmatch(l.console)
	require.NotNil(t, found, "console:\n%s", l.console)
	assert.Contains(t, found[1], "cloud-amd64")
	assert.NotContains(t, l.console, "wrenn-init:")
	t.Logf("probe: %.2f s from power-on to the end of the VMM", l.took.Seconds())
}

// TestG01_AGuestGrowsIntoALargerDisk: a sandbox may be given more than its template has.
func TestG01_AGuestGrowsIntoALargerDisk(t *testing.T) {
	disk := testDisk(t, "testdata/envd.sh")
	require.NoError(t, os.Truncate(disk, 3<<30))
	l := machine{disk: disk, arguments: "root=/dev/vda rw" + network}.boot(t)
	assert.NotContains(t, l.console, "grow the file system")
	f, err := os.Open(disk)
	require.NoError(t, err)
	defer f.Close()
	count := make([]byte, 4)
	_, err = f.ReadAt(count, 1024+4) // the superblock's s_blocks_count_lo
	require.NoError(t, err)
	assert.Equal(t, uint32(3<<30/4096), binary.LittleEndian.Uint32(count))
}

// checks are the lines that testdata/envd.sh printed.
func checks(console string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(console) {
		if pair, ok := strings.CutPrefix(line, "check "); ok {
			name, value, _ := strings.Cut(strings.TrimRight(pair, "\r\n"), "=")
			found[name] = strings.TrimSpace(value)
		}
	}
	return found
}

func TestG01_BootedGuest(t *testing.T) {
	disk := testDisk(t, "testdata/envd.sh")
	arguments := "root=/dev/vda rw wrenn.dns=1.2.3.4,5.6.7.8" + network
	first := machine{disk: disk, arguments: arguments + " wrenn.hostname=first"}.boot(t)
	got := checks(first.console)
	for name, want := range map[string]string{
		"hostname":     "first first",
		"arguments":    "--guest",
		"parent":       "1",
		"environment":  "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root",
		"user":         "uid=1000(user) gid=1000(user) groups=1000(user)",
		"sudo":         "/home/user 0",
		"python":       "Grüße",
		"tools":        "7",
		"certificates": "present",
		"resolvers":    "nameserver 1.2.3.4 nameserver 5.6.7.8",
		"hosts":        "127.0.1.1 STREAM first",
		"address":      "eth0 UP 169.254.0.21/30",
		"route":        "default via 169.254.0.22 dev eth0",
		"loopback":     "lo UNKNOWN 127.0.0.1/8",
		"pty":          "/dev/pts/0",
		"fd":           "linked",
		"root":         "/dev/vda / ext4 rw,noatime,discard 0 0",
		"mounts":       "tmpfs tmpfs cgroup2fs devpts",
		"tmp":          "1777 1777 ext2/ext3",
		"open-files":   "1024 524288",
		"init-file":    "/init (deleted)",
		"build-host":   "",
		"zombies":      "0",
	} {
		assert.Equal(t, want, got[name], name)
	}
	assert.Regexp(t, `^git version 2\.`, got["git"])
	assert.Regexp(t, `^[0-9a-f]{32}$`, got["machine-id"])
	assert.Greater(t, number(t, got["available-mib"]), 150.0, "of 256 MiB")
	assert.InDelta(t, float64(time.Now().Unix()), number(t, got["seconds-since-epoch"]), bootLimit.Seconds(),
		"the clock comes from the machine's RTC")
	assert.Positive(t, number(t, got["init-seconds"]))
	assert.Contains(t, first.console, "wrenn-init: fatal: envd ended: exit status 3")
	assert.Equal(t, 1, strings.Count(first.console, "wrenn-init:"), "nothing else to complain about:\n%s", first.console)

	second := machine{disk: disk, arguments: arguments + " wrenn.hostname=second test.mode=terminate"}.boot(t)
	again := checks(second.console)
	assert.Equal(t, "second second", again["hostname"])
	assert.Equal(t, got["machine-id"], again["machine-id"], "a disk keeps its identity")
	assert.NotContains(t, second.console, "panic")
	assert.NotContains(t, second.console, "wrenn-init:", "SIGTERM to PID 1 ends the guest without complaint")
	out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput()
	assert.NoError(t, err, "the disk after two boots: %s", out)
	t.Logf("wrenn-init started %s s after the kernel; available memory %s MiB of 256", got["init-seconds"], got["available-mib"])
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(s, 64)
	assert.NoError(t, err)
	return n
}

// TestG01_FailsClosed: whatever is wrong, the guest says so in one line and ends; no boot here may run
// into its deadline.
func TestG01_FailsClosed(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "envd")
	require.NoError(t, os.WriteFile(broken, []byte("no program"), 0o755))
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, make([]byte, 1<<20), 0o644))
	for _, c := range []struct {
		name string
		m    machine
		want string
	}{
		{"no such disk", machine{arguments: "root=/dev/vda rw"}, "root device /dev/vda did not appear in 10s"},
		{"no file system", machine{disk: empty, arguments: "root=/dev/vda rw"}, "mount root disk /dev/vda: "},
		{"bad argument", machine{arguments: "root=/dev/vda wrenn.ip=nonsense"}, "kernel argument wrenn.ip=nonsense: "},
		{"envd is no program", machine{disk: testDisk(t, broken), arguments: "root=/dev/vda rw"}, "start envd: "},
		{
			"envd killed",
			machine{disk: testDisk(t, "testdata/envd.sh"), arguments: "root=/dev/vda rw test.mode=killed"},
			"envd ended: killed by SIGKILL",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := c.m.boot(t)
			assert.Contains(t, l.console, "wrenn-init: fatal: "+c.want)
			assert.NotContains(t, l.console, "panic")
			t.Logf("ended after %.1f s", l.took.Seconds())
		})
	}
}

// TestG01_BuiltImageReachesEnvd boots the image as it is, envd included, and asks envd for its health
// from this machine.
func TestG01_BuiltImageReachesEnvd(t *testing.T) {
	image := need.File(t, "image", filepath.Join(imageDir, "templates/base/rootfs.ext4"), remedy)
	disk := filepath.Join(t.TempDir(), "disk")
	out, err := exec.Command("cp", "--sparse=always", image, disk).CombinedOutput()
	require.NoError(t, err, "%s", out)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := free.Addr().String()
	require.NoError(t, free.Close())

	var status string
	l := machine{
		disk:      disk,
		arguments: "root=/dev/vda rw" + network,
		netdev: "user,id=net,restrict=on,net=169.254.0.20/30,host=169.254.0.22,dhcpstart=169.254.0.21," +
			"hostfwd=tcp:" + host + "-169.254.0.21:49983",
		until:   "listening",
		reached: func() { status, err = health(host) },
	}.boot(t)
	require.NoError(t, err, "console:\n%s", l.console)
	assert.Contains(t, status, " 204 ")
	assert.NotContains(t, l.console, "wrenn-init:")
	t.Logf("envd listens %.2f s after power-on", l.seen.Seconds())
}

// TestG01_BootsWithoutAConsole: Firecracker's usual production setting is no serial port at all.
func TestG01_BootsWithoutAConsole(t *testing.T) {
	// Once without root=: the probe ends the machine by itself, whether or not anybody can read it.
	l := machine{arguments: "8250.nr_uarts=0 panic=0"}.boot(t)
	assert.Empty(t, l.console)

	disk := testDisk(t, "testdata/envd.sh")
	machine{disk: disk, arguments: "8250.nr_uarts=0 panic=0 root=/dev/vda rw test.mode=output"}.boot(t)
	out, err := exec.Command("debugfs", "-R", "cat /output", disk).Output()
	require.NoError(t, err)
	assert.Equal(t, "/dev/null /dev/null /dev/null\n", string(out), "envd's standard files")
}

// health asks for /health and returns the status line.
func health(host string) (string, error) {
	conn, err := net.DialTimeout("tcp", host, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: envd\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 4096)).ReadString('\n')
	return line, err
}
