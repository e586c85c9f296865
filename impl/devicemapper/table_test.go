package devicemapper

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func lines(table []target) string {
	var out []string
	for _, t := range table {
		out = append(out, t.String())
	}
	return strings.Join(out, "\n")
}

func TestS01_TablesAreAsTheKernelWantsThem(t *testing.T) {
	assert.Equal(t, "0 2097152 snapshot 7:0 7:300 P 8 1 discard_zeroes_cow",
		lines(snapshotTable(2097152, unix.Mkdev(7, 0), unix.Mkdev(7, 300))))
	assert.Equal(t, "0 2048 linear 7:1 0\n2048 6144 zero ", lines(originTable(8192, unix.Mkdev(7, 1), 2048)))
}

func TestS01_TablesSurviveTheWire(t *testing.T) {
	want := append(originTable(8192, unix.Mkdev(7, 1), 2048), snapshotTable(99, 1, 2)...)
	data := encodeTargets(want)
	assert.Zero(t, len(data)%8)
	// What comes back counts "next" from the first target, what goes out from its own.
	at := 0
	for range want {
		own := int(binary.NativeEndian.Uint32(data[at+20:]))
		binary.NativeEndian.PutUint32(data[at+20:], uint32(at+own))
		at += own
	}
	got, err := decodeTargets(data, len(want))
	require.NoError(t, err)
	assert.Equal(t, want, got)
	_, err = decodeTargets(data[:20], 1)
	require.ErrorIs(t, err, errShortAnswer)
	_, err = decodeTargets(data, len(want)+1)
	require.ErrorIs(t, err, errShortAnswer)
}

func TestNamesOfTheKernelsList(t *testing.T) {
	entry := func(dev uint64, next uint32, name string) []byte {
		b := binary.NativeEndian.AppendUint64(nil, dev)
		b = binary.NativeEndian.AppendUint32(b, next)
		return append(b, name...)
	}
	got, err := decodeNames(append(entry(1, 24, "wrenn-a\x00xxxx"), entry(2, 0, "b\x00")...))
	require.NoError(t, err)
	assert.Equal(t, []string{"wrenn-a", "b"}, got)
	for _, none := range [][]byte{nil, entry(0, 0, ""), make([]byte, 8)} {
		got, err = decodeNames(none)
		require.NoError(t, err)
		assert.Empty(t, got)
	}
	_, err = decodeNames(entry(1, 4096, "a\x00"))
	require.ErrorIs(t, err, errShortAnswer)
}

func TestS01_CowHasRoomForMetadata(t *testing.T) {
	const mib = 1 << 20
	for size, chunks := range map[int64]int64{
		chunkBytes:           1 + 1 + 1,
		255 * chunkBytes:     1 + 255 + 1,
		mib:                  1 + 256 + 2, // full metadata: the kernel clears the next
		mib + 1:              1 + 257 + 2,
		1024 * mib:           1 + 262144 + 1025,
		maxTestSize:          1 + maxTestSize/chunkBytes + maxTestSize/mib + 1,
		3*mib + 7*chunkBytes: 1 + 775 + 4,
	} {
		assert.Equal(t, chunks*chunkBytes, CowSize(size), "size %d", size)
	}
}

const maxTestSize = 1 << 40

func TestV01_DeviceNamesAreChecked(t *testing.T) {
	got, err := Name(strings.Repeat("a", 64))
	require.NoError(t, err)
	assert.Equal(t, "wrenn-"+strings.Repeat("a", 64), got)
	assert.Less(t, len(got+originSuffix), unix.DM_NAME_LEN)
	assert.Less(t, len(uuid(mark("/x"), mark("/x/y"), got+originSuffix)), unix.DM_UUID_LEN)
	for _, id := range []string{"", strings.Repeat("a", 65), "a/b", "..", "a:origin", "a b", "a\x00", "../mapper/x"} {
		_, err := Name(id)
		require.Error(t, err, "%q", id)
	}
}

func TestOwnersTellDevicesApart(t *testing.T) {
	mine, other, place := mark("/var/lib/a"), mark("/var/lib/b"), mark("/var/lib/a/x/cow")
	assert.NotEqual(t, mine, other)
	for _, c := range []struct {
		name, uuid, id string
		ours           bool
	}{
		{"wrenn-x", uuid(mine, place, "wrenn-x"), "x", true},
		{"wrenn-x-y.z", uuid(mine, place, "wrenn-x-y.z"), "x-y.z", true},
		{"wrenn-x:origin", uuid(mine, place, "wrenn-x:origin"), "x", true},
		{"wrenn-x", uuid(other, place, "wrenn-x"), "", false},
		{"wrenn-x", "", "", false},
		{"wrenn-x", "LVM-abc", "", false},
		{"wrenn-x", "WRENN-" + mine + "-x", "", false},
		{"x", uuid(mine, place, "x"), "", false},
		{"wrenn-y", uuid(mine, place, "wrenn-x"), "", false}, // renamed by somebody
	} {
		id, ours := ownID(mine, c.name, c.uuid)
		assert.Equal(t, c.ours, ours, "%+v", c)
		assert.Equal(t, c.id, id, "%+v", c)
	}
}

func TestS01_StatusIsRead(t *testing.T) {
	got, err := parseStatus("24/2048 8")
	require.NoError(t, err)
	assert.Equal(t, Status{Used: 24 * 512, Total: 2048 * 512, Metadata: 8 * 512}, got)
	for _, s := range []string{"Invalid", "Overflow", "Merge failed"} {
		got, err := parseStatus(s)
		require.NoError(t, err)
		assert.True(t, got.Invalid, s)
	}
	for _, s := range []string{"", "Unknown", "1/2", "1 2", "x/2 3", "1/2 -3", "1/9999999999999999999 3", "1/2 3 4"} {
		_, err := parseStatus(s)
		require.ErrorContains(t, err, "unknown status", "%q", s)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add(encodeTargets(originTable(8192, 1, 2048)), 2)
	f.Fuzz(func(t *testing.T, data []byte, count int) {
		_, _ = decodeTargets(data, min(count, 100))
		_, _ = decodeNames(data)
	})
}
