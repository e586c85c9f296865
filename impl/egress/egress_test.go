package egress

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestN09_RulesMeanAPolicy(t *testing.T) {
	p, err := Rules{
		AllowInternet: true,
		AllowOut:      []string{"192.0.2.7", "198.51.100.9/24", "10.1.0.0/16", "Example.COM.", "*.Example.org", "example.com"},
		DenyOut:       []string{"0.0.0.0/0", "8.8.8.8", "::/0", "2001:db8::1"},
	}.Policy()
	require.NoError(t, err)
	require.NoError(t, p.Check())
	assert.Equal(t, Policy{
		AllowInternet: true,
		Allow:         []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("10.1.0.0/16")},
		Deny:          []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("8.8.8.8/32")},
		Domains:       []string{"example.com", "*.example.org"},
	}, p)
	for _, name := range []string{"example.com", "EXAMPLE.com.", "a.example.org", "a.b.example.org."} {
		assert.True(t, p.AllowsName(name), name)
	}
	for _, name := range []string{"example.org", "xexample.org", ".example.org", "www.example.com", "com", "", "."} {
		assert.False(t, p.AllowsName(name), name)
	}
	_, err = Rules{AllowOut: []string{"example.com"}}.Policy()
	require.NoError(t, err, "no internet access is a denial of all")
}

func TestN09_RulesThatCannotBeTakenNameTheFieldAndTheRemedy(t *testing.T) {
	many := make([]string, MaxEntries+1)
	for i := range many {
		many[i] = fmt.Sprintf("192.0.2.%d", i%256)
	}
	label := strings.Repeat("a", 64)
	for _, tc := range []struct {
		rules Rules
		want  []string
	}{
		{Rules{AllowInternet: true, AllowOut: []string{"example.com"}}, []string{"allowOut", "denyOut", "0.0.0.0/0"}},
		{Rules{AllowInternet: true, AllowOut: []string{"*.example.com"}, DenyOut: []string{"8.8.8.8"}}, []string{"allowOut", "0.0.0.0/0"}},
		{Rules{DenyOut: []string{"8.8.8.8", "example.com"}}, []string{`denyOut[1] "example.com"`, "names can only be allowed"}},
		{Rules{DenyOut: []string{""}}, []string{"denyOut[0]"}},
		{Rules{DenyOut: []string{"fe80::1%eth0"}}, []string{"denyOut[0]"}},
		{Rules{AllowOut: []string{"1.1.1.1", "2001:db8::/32"}}, []string{`allowOut[1] "2001:db8::/32"`, "no IPv6"}},
		{Rules{AllowOut: []string{"::ffff:10.0.0.1"}}, []string{"allowOut[0]"}},
		{Rules{AllowOut: []string{"256.1.1.1"}}, []string{"allowOut[0]", "0 to 255"}},
		{Rules{AllowOut: []string{"10.0.0"}}, []string{"allowOut[0]", "four numbers"}},
		{Rules{AllowOut: []string{"10.0.0.0/33"}}, []string{"allowOut[0]", "range"}},
		{Rules{AllowOut: []string{"https://example.com/"}}, []string{"allowOut[0]", "without scheme"}},
		{Rules{AllowOut: []string{"example.com:443"}}, []string{"allowOut[0]", "port"}},
		{Rules{AllowOut: []string{"*"}}, []string{"allowOut[0]", "0.0.0.0/0"}},
		{Rules{AllowOut: []string{"a.*.example.com"}}, []string{"allowOut[0]", "*.example.com"}},
		{Rules{AllowOut: []string{"bücher.example"}}, []string{"allowOut[0]", "xn--"}},
		{Rules{AllowOut: []string{"a..b"}}, []string{"allowOut[0]", "1 to 63"}},
		{Rules{AllowOut: []string{label + ".example"}}, []string{"allowOut[0]", "1 to 63"}},
		{Rules{AllowOut: []string{strings.Repeat("abc.", 64) + "com"}}, []string{"allowOut[0]", "253"}},
		{Rules{AllowOut: []string{"a\x00b.example"}}, []string{"allowOut[0]"}},
		{Rules{AllowOut: []string{""}}, []string{"allowOut[0]"}},
		{Rules{AllowOut: many}, []string{"allowOut", "256"}},
		{Rules{DenyOut: many}, []string{"denyOut", "256"}},
	} {
		_, err := tc.rules.Policy()
		var invalid *InvalidError
		require.ErrorAs(t, err, &invalid, "%.200v", tc.rules)
		assert.Less(t, len(err.Error()), 400)
		for _, want := range tc.want {
			assert.ErrorContains(t, err, want)
		}
	}
}

// A wide range opens no private address, and every public one that it holds.
func TestN09_AWideRangeOpensNothingPrivate(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, wide := range []string{"0.0.0.0/0", "0.0.0.0/1", "8.0.0.0/6", "192.0.0.0/8", "128.0.0.0/1"} {
		p, err := Rules{AllowOut: []string{wide}}.Policy()
		require.NoError(t, err)
		prefix := netip.MustParsePrefix(wide)
		for range 10_000 {
			v := random.Uint32()
			addr := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
			if got, want := p.Allows(addr, false), prefix.Contains(addr) && !Private(addr); got != want {
				t.Fatalf("%s opens %s: %v", wide, addr, got)
			}
		}
		for _, private := range privateRanges {
			assert.False(t, p.Allows(private.Addr(), false), "%s opens %s", wide, private)
		}
		assert.Less(t, len(p.Allow), 100)
	}
}

func TestN09_Decisions(t *testing.T) {
	addr := netip.MustParseAddr
	prefixes := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	names := []string{"example.com"}
	for _, tc := range []struct {
		name   string
		policy Policy
		addr   netip.Addr
		named  bool
		want   bool
	}{
		{"nothing", Policy{}, addr("8.8.8.8"), false, false},
		{"internet", Policy{AllowInternet: true}, addr("8.8.8.8"), false, true},
		{"private", Policy{AllowInternet: true}, addr("192.168.1.1"), false, false},
		{"private, allowed", Policy{Allow: prefixes("192.168.0.0/16")}, addr("192.168.1.1"), false, true},
		{"denied", Policy{AllowInternet: true, Deny: prefixes("8.0.0.0/8")}, addr("8.8.8.8"), false, false},
		{"allow wins", Policy{Allow: prefixes("8.8.8.8/32"), Deny: prefixes("0.0.0.0/0")}, addr("8.8.8.8"), false, true},
		{"a name's address", Policy{Domains: names, Deny: prefixes("0.0.0.0/0")}, addr("8.8.8.8"), true, true},
		{"a name's address that no answer holds", Policy{Domains: names}, addr("8.8.8.8"), false, false},
		{"a name's private address", Policy{Domains: names}, addr("10.0.0.1"), true, false},
		{"no names", Policy{}, addr("8.8.8.8"), true, false},
	} {
		assert.Equal(t, tc.want, tc.policy.Allows(tc.addr, tc.named), tc.name)
	}
	assert.True(t, Private(addr("::1")), "IPv6")
}

func FuzzRules(f *testing.F) {
	for _, seed := range []string{"0.0.0.0/0", "example.com", "*.example.com", "::1", "10.0.0.0/8", "xn--bcher-kva.example", "*.", "..", "1.2.3.4/"} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, allow, deny string) {
		p, err := Rules{AllowOut: []string{allow}, DenyOut: []string{deny}}.Policy()
		if err == nil {
			require.NoError(t, p.Check())
		}
	})
}
