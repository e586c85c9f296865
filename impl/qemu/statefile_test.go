package qemu

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func someDescription() description {
	return description{QEMU: "7.2", Machine: machineType, Accel: "tcg", CPU: "max",
		Config: machineConfig{VCPUCount: 2, MemSizeMiB: 256, TrackDirtyPages: true, HugePages: "None"},
		Drives: []drive{{DriveID: "root", PathOnHost: "root.disk", IsRootDevice: true, CacheType: "Unsafe", IOEngine: "Sync",
			RateLimiter: &rateLimiter{Bandwidth: &tokenBucket{Size: 5, RefillTime: 100}}}},
		NICs:    []nic{{IfaceID: "eth0", HostDevName: "tap0"}},
		MACs:    map[string]string{"eth0": "06:00:00:00:00:01"},
		Entropy: &entropy{},
	}
}

func someState(t testing.TB) []byte {
	t.Helper()
	devices := make([]byte, 9000)
	for i := range devices {
		devices[i] = byte(i * 7)
	}
	raw, err := encodeState(someDescription(), devices)
	require.NoError(t, err)
	return raw
}

func TestStateFileRoundTrip(t *testing.T) {
	raw := someState(t)
	d, start, err := decodeState(raw)
	require.NoError(t, err)
	assert.Equal(t, someDescription(), d)
	assert.Equal(t, 4096, start, "QEMU reads from a whole page on")
	assert.Equal(t, byte(7), raw[start+1])

	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("longer"), 10_000), 0o600))
	require.NoError(t, writeState(path, raw))
	f, d, err := readState(path)
	require.NoError(t, err)
	defer f.Close()
	assert.Equal(t, someDescription(), d)
	at, err := f.Seek(0, 1)
	require.NoError(t, err)
	assert.EqualValues(t, 4096, at)

	many := someDescription()
	for range 60 {
		many.Drives = append(many.Drives, many.Drives[0])
	}
	raw, err = encodeState(many, []byte{1})
	require.NoError(t, err)
	_, start, err = decodeState(raw)
	require.NoError(t, err)
	assert.Greater(t, start, 4096)
	assert.Zero(t, start%4096)
}

func TestS08_DamagedStateFilesAreRefused(t *testing.T) {
	raw := someState(t)
	for at := range raw {
		raw[at] ^= 1 << (at % 8)
		_, _, err := decodeState(raw)
		require.Error(t, err, "a bit flipped at %d", at)
		raw[at] ^= 1 << (at % 8)
	}
	for n := range raw {
		_, _, err := decodeState(raw[:n])
		require.Error(t, err, "the first %d bytes", n)
	}
	_, _, err := decodeState(append(bytes.Clone(raw), 0))
	require.ErrorContains(t, err, "torn")
}

// What only a program of ours with another mind could have written: the checksums are right.
func TestS08_WrongStateFilesAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func([]byte)
		want   string
	}{
		"newer format":  {func(h []byte) { h[8] = 2 }, "version 2"},
		"foreign":       {func(h []byte) { h[0] = 'X' }, "not a state file"},
		"unknown field": {func(h []byte) { copy(h[descriptorAt:], `{"qemX"`) }, "describes its machine wrongly"},
		"no header":     {func(h []byte) { binary.LittleEndian.PutUint32(h[12:], 0) }, "torn"},
		"huge header":   {func(h []byte) { binary.LittleEndian.PutUint32(h[12:], 1<<31) }, "torn"},
		"long text":     {func(h []byte) { binary.LittleEndian.PutUint32(h[16:], 1<<32-1) }, "torn"},
		"text too long": {func(h []byte) { binary.LittleEndian.PutUint32(h[16:], 4096) }, "torn"},
	} {
		raw := someState(t)
		test.change(raw)
		binary.LittleEndian.PutUint32(raw[32:], 0)
		binary.LittleEndian.PutUint32(raw[32:], crc32.Checksum(raw[:4096], castagnoli))
		_, _, err := decodeState(raw)
		require.ErrorContains(t, err, test.want, name)
	}
	_, err := encodeState(someDescription(), nil)
	require.ErrorContains(t, err, "0 bytes")
	_, err = encodeState(someDescription(), make([]byte, maxDeviceState+1))
	require.Error(t, err)
	huge := someDescription()
	huge.Drives[0].PathOnHost = string(make([]byte, maxHeader))
	_, err = encodeState(huge, []byte{1})
	require.Error(t, err)
}

func TestS08_StatesOfOtherMachinesAreRefused(t *testing.T) {
	require.NoError(t, someDescription().check("tcg"))
	for name, test := range map[string]struct {
		change func(*description)
		want   string
	}{
		"machine":     {func(d *description) { d.Machine = "q35" }, `machine type "q35"`},
		"accelerator": {func(d *description) { d.Accel = "kvm" }, `accelerator "kvm"`},
		"cpu":         {func(d *description) { d.CPU = "qemu64" }, `cpu model "qemu64"`},
		"no cpus":     {func(d *description) { d.Config.VCPUCount = 0 }, "number of vCPUs"},
		"no memory":   {func(d *description) { d.Config.MemSizeMiB = 0 }, "memory size"},
		"drive id":    {func(d *description) { d.Drives[0].DriveID = `x","y":"` }, "a drive with the id"},
		"iface id":    {func(d *description) { d.NICs[0].IfaceID = "../x" }, "an interface with the id"},
		"no address":  {func(d *description) { d.MACs = nil }, "an interface with the id"},
	} {
		d := someDescription()
		test.change(&d)
		require.ErrorContains(t, d.check("tcg"), test.want, name)
	}
	require.Error(t, someDescription().check("kvm"))
}

func TestStateFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	fifo, huge := filepath.Join(dir, "fifo"), filepath.Join(dir, "huge")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	require.NoError(t, os.WriteFile(huge, nil, 0o600))
	require.NoError(t, os.Truncate(huge, 1<<40))
	for _, path := range []string{dir, fifo, "/dev/zero", huge} {
		_, _, err := readState(path)
		require.ErrorContains(t, err, "Failed to load snapshot state from file: "+path, path)
	}
	_, _, err := readState(filepath.Join(dir, "missing"))
	require.ErrorContains(t, err, "No such file or directory (os error 2)")
	require.ErrorContains(t, writeState("/nonexistent/state", []byte{1}), "Cannot perform open on the snapshot backing file: No such file")
	require.ErrorContains(t, writeState("/dev/full", []byte{1}), "snapshot backing file")
}

func FuzzDecodeState(f *testing.F) {
	good := someState(f)
	f.Add(good)
	f.Add(good[:4096])
	f.Add([]byte(stateMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, start, err := decodeState(raw)
		if err != nil {
			return
		}
		again, err := encodeState(d, raw[start:])
		require.NoError(t, err)
		_, _, err = decodeState(again)
		require.NoError(t, err)
	})
}

// seeded is a source of randomness that prints its seed; WRENN_TEST_SEED sets it.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("WRENN_TEST_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("WRENN_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
