package ports

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBothScansSeeTheSame compares the kernel's two answers.
func TestBothScansSeeTheSame(t *testing.T) {
	want := []netip.AddrPort{}
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
		network := "tcp6"
		if !strings.Contains(at, "[") {
			network = "tcp4"
		}
		l, err := net.Listen(network, at)
		require.NoError(t, err)
		defer l.Close()
		want = append(want, netip.MustParseAddrPort(l.Addr().String()))
		// A connection is not a listener.
		c, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer c.Close()
	}
	s := &scanner{}
	defer s.close()
	for range 3 { // the socket is used again
		byDiag, err := s.scan()
		require.NoError(t, err)
		byProc, err := scanProc()
		require.NoError(t, err)
		sort := func(l []listener) {
			slices.SortFunc(l, func(a, b listener) int { return a.at.Compare(b.at) })
		}
		sort(byDiag)
		sort(byProc)
		assert.Equal(t, byProc, byDiag)
		for _, w := range want {
			assert.True(t, slices.ContainsFunc(byDiag, func(l listener) bool { return l.at == w && l.inode != 0 }), "%s in %v", w, byDiag)
		}
	}
	assert.False(t, s.byProc, "this kernel has sock_diag")
}

func TestScanProcRefusesNonsense(t *testing.T) {
	const header = "  sl  local_address rem_address   st\n"
	good := header + "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4242 1\n"
	all, err := parseProc(strings.NewReader(good))
	require.NoError(t, err)
	if littleEndian {
		assert.Equal(t, []listener{{at: netip.MustParseAddrPort("127.0.0.1:8080"), inode: 4242}}, all)
	}
	for _, bad := range []string{
		header + "  0: 0100007F:1F90\n",
		strings.Replace(good, "0100007F", "01000", 1),
		strings.Replace(good, "1F90", "1F90F", 1),
		strings.Replace(good, "4242", "x", 1),
	} {
		_, err := parseProc(strings.NewReader(bad))
		require.Error(t, err, bad)
	}
	_, err = parseDiag(make([]byte, 20))
	require.Error(t, err)
	_, err = parseDiag(make([]byte, 72))
	require.Error(t, err, "no family")
}

// TestAScanGivesUpItsSocketAfterAnError: what would come next on it could be the rest of another dump.
func TestAScanGivesUpItsSocketAfterAnError(t *testing.T) {
	s := &scanner{}
	defer s.close()
	_, err := s.scan()
	require.NoError(t, err)
	require.NoError(t, s.conn.SetDeadline(time.Now()))
	require.NoError(t, s.conn.Close())
	_, err = s.scan()
	require.Error(t, err)
	assert.False(t, s.byProc)
	_, err = s.scan()
	require.NoError(t, err)
}
