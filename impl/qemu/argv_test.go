package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func ptr[T any](v T) *T { return &v }

var update = flag.Bool("update", false, "write the golden files anew")

// TestArgvGolden keeps the whole command lines: a state that was saved under one is loaded under the other, so
// machine, processor and the order of devices must not drift apart.
func TestArgvGolden(t *testing.T) {
	m := testMachine()
	m.boot.InitrdPath = ptr("/i")
	m.drives = []drive{{DriveID: "root", PathOnHost: "root.disk", IsRootDevice: true, CacheType: "Writeback"},
		{DriveID: "data", PathOnHost: "/d", IsReadOnly: true, CacheType: "Unsafe"}}
	m.nics = []nic{{IfaceID: "eth0", HostDevName: "tap0"}, {IfaceID: "eth1", HostDevName: "tap1", MTU: ptr(1400)}}
	m.macs = map[string]string{"eth0": "06:00:00:00:00:01", "eth1": "06:00:00:00:00:02"}
	m.entropy = &entropy{}
	for name, argv := range map[string][]string{"boot": m.argv(), "incoming": m.incomingArgv()} {
		golden := filepath.Join("testdata", name+".argv")
		got := strings.Join(argv, "\n") + "\n"
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		assert.Equal(t, string(want), got, name)
	}
	devices := strings.Join(m.devices(), "\n")
	assert.Contains(t, strings.Join(m.argv(), "\n"), devices)
	assert.Contains(t, strings.Join(m.incomingArgv(), "\n"), devices)
}

func testMachine() *machine {
	return &machine{cfg: Config{QEMU: "qemu", Accel: "tcg"}, boot: &bootSource{KernelImagePath: "/k"},
		machine: machineConfig{VCPUCount: 2, MemSizeMiB: 64}, tsc: func() int { return 2_600_000 }}
}

func TestCommandLine(t *testing.T) {
	m := testMachine()
	assert.Equal(t, defaultArgs+" pci=off cryptomgr.notests tsc=reliable tsc_early_khz=2600000", m.commandLine(), "Firecracker's default")
	m.boot.BootArgs = ptr("console=ttyS0")
	assert.Equal(t, "console=ttyS0 pci=off cryptomgr.notests tsc=reliable tsc_early_khz=2600000", m.commandLine())
	m.cfg.Accel = "kvm"
	assert.Equal(t, "console=ttyS0 pci=off", m.commandLine())
	for _, test := range []struct {
		drive drive
		want  string
	}{
		{drive{IsRootDevice: true}, "console=ttyS0 root=/dev/vda rw pci=off"},
		{drive{IsRootDevice: true, IsReadOnly: true}, "console=ttyS0 root=/dev/vda ro pci=off"},
		{drive{IsRootDevice: true, PartUUID: ptr("0eaa91a0-01")}, "console=ttyS0 root=PARTUUID=0eaa91a0-01 rw pci=off"},
		{drive{}, "console=ttyS0 pci=off"},
	} {
		m.drives = []drive{test.drive}
		assert.Equal(t, test.want, m.commandLine())
	}
}

func TestArgvIsConfined(t *testing.T) {
	m := testMachine()
	line := strings.Join(m.argv(), " ")
	assert.Contains(t, line, "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	assert.Contains(t, line, "-nodefaults -no-user-config")
	assert.Contains(t, line, "-smp 2 -m 64M")
	assert.NotContains(t, line, "-initrd")
}

// A path may hold whatever a file name may: it must not become an option.
func TestArgvKeepsNamesApart(t *testing.T) {
	d := drive{DriveID: "root", PathOnHost: `/a,readonly=on,b="c'd\e` + "\n", CacheType: "Unsafe"}
	argv := d.argv()
	require.Len(t, argv, 10)
	assert.Equal(t, `{"cache":{"direct":false,"no-flush":true},"driver":"file","drop-cache":false,"filename":"/a,readonly=on,b=\"c'd\\e\n","locking":"off","node-name":"f0_root","read-only":false}`, argv[3])
	d.CacheType, d.PathOnHost = "Writeback", "/dev/null"
	assert.Equal(t, `{"cache":{"direct":false,"no-flush":false},"driver":"host_device","drop-cache":false,"filename":"/dev/null","locking":"off","node-name":"f0_root","read-only":false}`, d.argv()[3])
}

func TestThrottleLimits(t *testing.T) {
	none := object{"bps-total": uint64(0), "bps-total-max": uint64(0), "iops-total": uint64(0), "iops-total-max": uint64(0)}
	assert.Equal(t, none, throttleLimits(nil))
	assert.Equal(t, none, throttleLimits(&rateLimiter{Bandwidth: &tokenBucket{Size: 5}, Ops: &tokenBucket{RefillTime: 5}}))
	got := throttleLimits(&rateLimiter{
		Bandwidth: &tokenBucket{Size: 20_000_000, RefillTime: 1000},
		Ops:       &tokenBucket{Size: 5, RefillTime: 100}, // 50 a second: QEMU refuses a burst of 5
	})
	assert.Equal(t, object{"bps-total": uint64(20_000_000), "bps-total-max": uint64(20_000_000),
		"iops-total": uint64(50), "iops-total-max": uint64(0)}, got)
}

func TestMergeLimits(t *testing.T) {
	a, b, c := &tokenBucket{Size: 1, RefillTime: 1}, &tokenBucket{Size: 2, RefillTime: 2}, &tokenBucket{Size: 3, RefillTime: 3}
	var none *rateLimiter
	assert.Nil(t, none.merge(nil))
	assert.Equal(t, &rateLimiter{Ops: a}, none.merge(&rateLimiter{Ops: a}))
	was := &rateLimiter{Bandwidth: a, Ops: b}
	assert.Equal(t, &rateLimiter{Bandwidth: c, Ops: b}, was.merge(&rateLimiter{Bandwidth: c}))
	assert.Equal(t, &rateLimiter{Bandwidth: a, Ops: b}, was, "the former limits stay as they were")
}

func TestTSCIsPlausible(t *testing.T) {
	first, second := tscKHz(), tscKHz()
	assert.Greater(t, first, 100_000)
	assert.Less(t, first, 20_000_000)
	assert.InEpsilon(t, first, second, 0.01)
}

func TestRandomMAC(t *testing.T) {
	a, b := randomMAC(), randomMAC()
	assert.Regexp(t, macPattern, a)
	assert.NotEqual(t, a, b)
	assert.Contains(t, "26ae", a[1:2], "local and unicast")
}
