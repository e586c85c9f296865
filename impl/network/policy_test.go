package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestN09_PolicyRefusesWhatIsNotIPv4(t *testing.T) {
	v6 := []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
	require.ErrorContains(t, Policy{Allow: v6}.Check(), "allow: 2001:db8::/32")
	require.ErrorContains(t, Policy{Deny: v6}.Check(), "deny: 2001:db8::/32")
	require.Error(t, Policy{Deny: []netip.Prefix{{}}}.Check())
	require.Error(t, Policy{Allow: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}.Check())
	require.NoError(t, Policy{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}.Check())
	require.ErrorContains(t, Policy{Domains: []string{"example.com", "Example.com"}}.Check(), `domains: "Example.com"`)
}

func TestN09_SetsHoldNoOverlaps(t *testing.T) {
	var in []netip.Prefix
	for _, p := range []string{"10.1.2.3/16", "10.0.0.0/8", "192.168.1.1/32", "10.0.0.0/8", "192.168.0.0/16", "9.0.0.0/8"} {
		in = append(in, netip.MustParsePrefix(p))
	}
	var got []string
	for _, p := range disjoint(in) {
		got = append(got, p.String())
	}
	assert.Equal(t, []string{"9.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16"}, got)
	assert.Equal(t, "10.1.2.3/16", in[0].String(), "the caller's list was changed")
}

func TestN08_Resolvers(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	stub := file("stub", "# made by systemd-resolved\nnameserver 127.0.0.53\noptions edns0\nsearch example.org\n")
	upstream := file("upstream", "nameserver 10.0.0.2\nnameserver 192.0.2.53\n")
	mixed := file("mixed", "; comment\n nameserver\t::1\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\nnameserver 0.0.0.0\n"+
		"nameserver 192.0.2.1 \nnameserver\nnameserver nonsense\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n")
	missing := filepath.Join(dir, "missing")
	for _, tc := range []struct {
		name  string
		files []string
		want  []string
	}{
		{"a stub is passed over", []string{stub, upstream}, []string{"10.0.0.2", "192.0.2.53"}},
		{"the first that names any", []string{upstream, mixed}, []string{"10.0.0.2", "192.0.2.53"}},
		{"only what a guest can use, three at most", []string{mixed}, []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}},
		{"missing files are passed over", []string{missing, upstream}, []string{"10.0.0.2", "192.0.2.53"}},
		{"nothing is made up", []string{stub, missing}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			found, err := Resolvers(tc.files...)
			require.NoError(t, err)
			var got []string
			for _, r := range found {
				got = append(got, r.String())
			}
			assert.Equal(t, tc.want, got)
		})
	}
	found, err := Upstreams(stub, upstream)
	require.NoError(t, err)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("127.0.0.53")}, found, "the host itself can ask its stub")
	found, err = Upstreams(mixed)
	require.NoError(t, err)
	assert.Equal(t, netip.MustParseAddr("::1"), found[0])
	assert.Len(t, found, MaxResolvers)
	_, err = Resolvers(dir)
	require.Error(t, err, "a file that cannot be read")
}
