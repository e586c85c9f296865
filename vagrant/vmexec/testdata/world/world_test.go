package world

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

// shell runs a script in a machine; it would not be welcome elsewhere.
func shell(t *testing.T, script string) string {
	t.Helper()
	require.Equal(t, "vmexec", hostname(t), "this is no machine of vmexec's")
	out, err := exec.CommandContext(t.Context(), "sh", "-euc", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return strings.TrimSpace(string(out))
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	require.NoError(t, err)
	return name
}

func TestKVMMakesAMachine(t *testing.T) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	require.NoError(t, err)
	defer kvm.Close()
	const getAPIVersion, createVM, createVCPU = 0xae00, 0xae01, 0xae41
	version, err := unix.IoctlRetInt(int(kvm.Fd()), getAPIVersion)
	require.NoError(t, err)
	assert.Equal(t, 12, version)
	vm, err := unix.IoctlRetInt(int(kvm.Fd()), createVM)
	require.NoError(t, err)
	defer unix.Close(vm)
	vcpu, err := unix.IoctlRetInt(vm, createVCPU)
	require.NoError(t, err)
	require.NoError(t, unix.Close(vcpu))
}

func TestSnapshotsByDeviceMapper(t *testing.T) {
	got := shell(t, `
		cd $(mktemp -d)
		yes origin | head -c 4M > origin
		truncate -s 2M cow
		o=$(losetup --find --show --read-only origin)
		c=$(losetup --find --show cow)
		dmsetup create --noudevsync test --table "0 8192 snapshot $o $c P 8"
		dmsetup mknodes
		printf changed | dd of=/dev/mapper/test conv=notrunc,fsync status=none
		head -c 14 /dev/mapper/test | tr '\n' .
		head -c 14 origin | tr '\n' .
		dmsetup remove --noudevsync test
		losetup -d $o $c`)
	assert.Equal(t, "changedorigin.origin.origin.", got)
}

func TestNetworks(t *testing.T) {
	shell(t, `
		ip netns add guest
		ip link add near type veth peer name far netns guest
		ip addr add 10.0.0.1/30 dev near
		ip link set near up
		ip -n guest addr add 10.0.0.2/30 dev far
		ip -n guest link set far up
		ip -n guest tuntap add tap0 mode tap
		tc qdisc add dev near root tbf rate 10mbit burst 10k latency 50ms
		iptables -w -t nat -A POSTROUTING -s 10.0.0.0/30 ! -o near -m comment --comment test -j MASQUERADE
		iptables -w -A FORWARD -i near -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		iptables-save | grep -q MASQUERADE
		echo hello | ip netns exec guest bash -c 'cat > /dev/udp/10.0.0.1/9'
		iptables -w -D FORWARD 1
		iptables -w -t nat -F
		ip netns del guest`)
}

func TestPageFaultsInUserSpace(t *testing.T) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	require.Zero(t, errno)
	require.NoError(t, unix.Close(int(fd)))
}

// TestWhatAPackageAsksFor: vmexec.conf names a module, a program and a file.
func TestWhatAPackageAsksFor(t *testing.T) {
	modules, err := os.ReadFile("/proc/modules")
	require.NoError(t, err)
	assert.Contains(t, string(modules), "dm_zero ")
	need.Root(t)
	need.Program(t, "gzip")
	assert.FileExists(t, "../sick/sick.go")
	assert.Contains(t, os.Getenv(need.Env), "-firecracker")
	assert.Equal(t, "1", shell(t, "nproc || grep -c ^processor /proc/cpuinfo"))
}
