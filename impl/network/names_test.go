package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"wrenn/impl/egress"
	"wrenn/impl/netns"
	"wrenn/impl/network/nameserver"
)

func TestN09_AnAllowedNameOpensItsAddressesAlone(t *testing.T) {
	h, _ := newNamedHost(t, zone{
		"allowed.test.": {a(publicServer)}, "sub.wild.test.": {a(secondServer)}, "wild.test.": {a(thirdServer)},
		"alias.test.": {cname("hop.other.test.")}, "hop.other.test.": {cname("end.other.test.")}, "end.other.test.": {a(thirdServer)},
		"other.test.": {a(secondServer)},
	}, time.Minute)
	guest := newSandbox(t, h, 41, policy(t, "allowed.test", "*.wild.test", "alias.test"))
	neighbour := newSandbox(t, h, 42, policy(t, "allowed.test"))
	assertBarred(t, guest, at(publicServer, secondServer, thirdServer)...)

	assertResolves(t, guest, "Allowed.Test.", publicServer)
	assertReaches(t, guest, publicServer, hostUplink)
	assertBarred(t, guest, at(secondServer, thirdServer)...)
	assertBarred(t, neighbour, at(publicServer)...)

	start := time.Now()
	for _, name := range []string{"other.test.", "wild.test.", "xallowed.test.", "end.other.test.", "nosuch.allowed.test."} {
		_, err := lookup(guest, "", nowhere, name)
		var dns *net.DNSError
		require.ErrorAs(t, err, &dns, name)
		assert.True(t, dns.IsNotFound, "%s: %v", name, err)
	}
	assert.Less(t, time.Since(start), patience/2, "a refusal is an answer, not silence")
	assertBarred(t, guest, at(secondServer, thirdServer)...)

	assertResolves(t, guest, "sub.wild.test.", secondServer)
	assertReaches(t, guest, secondServer, hostUplink)
	assertResolves(t, guest, "alias.test.", thirdServer)
	assertReaches(t, guest, thirdServer, hostUplink)
	assertBarred(t, guest, at(append(forbidden, resolverIP, TapIP)...)...)
}

// Rebinding: whoever owns an allowed name could point it at what the sandbox must not reach.
func TestN09_ANameOpensNothingPrivate(t *testing.T) {
	targets := append([]string{Slot(44).HostIP().String(), Slot(44).VpeerIP().String(), hostUplink}, forbidden...)
	z := zone{"mixed.test.": {a(forbidden[0]), a(publicServer)}}
	for i, ip := range targets {
		z[fmt.Sprintf("evil%d.test.", i)] = []dnsmessage.ResourceBody{a(ip)}
	}
	h, _ := newNamedHost(t, z, time.Minute)
	serveEcho(t, nil, "0.0.0.0:"+echoPort)
	guest := newSandbox(t, h, 43, policy(t, "*.test"))
	newSandbox(t, h, 44, Policy{AllowInternet: true})
	for i, ip := range targets {
		assertResolves(t, guest, fmt.Sprintf("evil%d.test.", i), ip)
	}
	assertBarred(t, guest, at(targets...)...)
	assertResolves(t, guest, "mixed.test.", forbidden[0], publicServer)
	assertReaches(t, guest, publicServer, hostUplink)
	assertBarred(t, guest, at(forbidden[0])...)
}

// session is an open connection to an echo server.
type session struct{ net.Conn }

func open(t *testing.T, guest *netns.Handle, ip string) session {
	t.Helper()
	var s session
	require.NoError(t, in(guest, func() (err error) {
		s.Conn, err = net.DialTimeout("tcp4", at(ip)[0], patience)
		return err
	}))
	t.Cleanup(func() { s.Close() })
	s.SetDeadline(time.Now().Add(patience))
	for one := make([]byte, 1); one[0] != '\n'; {
		_, err := io.ReadFull(s, one)
		require.NoError(t, err, "the greeting")
	}
	require.NoError(t, s.ping(patience))
	return s
}

func (s session) ping(limit time.Duration) error {
	s.SetDeadline(time.Now().Add(limit))
	if _, err := s.Write([]byte("p")); err != nil {
		return err
	}
	_, err := s.Read(make([]byte, 1))
	return err
}

func TestN09_AnAnswerThatHasExpiredOpensNoNewConnection(t *testing.T) {
	h, _ := newNamedHost(t, zone{"allowed.test.": {a(publicServer)}}, 500*time.Millisecond)
	guest := newSandbox(t, h, 45, policy(t, "allowed.test"))
	assertResolves(t, guest, "allowed.test.", publicServer)
	s := open(t, guest, publicServer)
	require.Eventually(t, func() bool {
		_, err := echo(guest, at(publicServer)[0], refusal)
		return err != nil
	}, patience, 100*time.Millisecond, "the address stays open")
	require.NoError(t, s.ping(patience), "the connection that was open was cut")
	assertResolves(t, guest, "allowed.test.", publicServer)
	assertReaches(t, guest, publicServer, hostUplink)
}

func TestN09_ALaterAnswerPutsTheEndOff(t *testing.T) {
	const hold = 3 * time.Second
	h, _ := newNamedHost(t, zone{"allowed.test.": {a(publicServer)}}, hold)
	guest := newSandbox(t, h, 46, policy(t, "allowed.test"))
	for begin := time.Now(); time.Since(begin) < hold+hold/2; time.Sleep(hold / 6) {
		assertResolves(t, guest, "allowed.test.", publicServer)
		_, err := echo(guest, at(publicServer)[0], patience)
		require.NoError(t, err, "after %v", time.Since(begin))
	}
}

func TestN09_QuestionsByTCPAndAnswersThatNeedIt(t *testing.T) {
	var many []dnsmessage.ResourceBody
	for i := range 200 {
		many = append(many, a(fmt.Sprintf("198.51.%d.%d", 100+i/250, 1+i%250)))
	}
	h, _ := newNamedHost(t, zone{"many.test.": many, "allowed.test.": {a(publicServer)}}, time.Minute)
	guest := newSandbox(t, h, 47, policy(t, "*.test"))
	found, err := lookup(guest, "tcp", nowhere, "allowed.test.")
	require.NoError(t, err)
	assert.Len(t, found, 1)
	found, err = lookup(guest, "", nowhere, "many.test.")
	require.NoError(t, err)
	assert.Len(t, found, len(many))
	assertReaches(t, guest, secondServer, hostUplink)
}

func TestN09_AChangeOfPolicyKeepsTheNamesThatItKeeps(t *testing.T) {
	h, _ := newNamedHost(t, zone{"one.test.": {a(publicServer)}, "two.test.": {a(secondServer)}}, 500*time.Millisecond)
	guest := newSandbox(t, h, 48, policy(t, "one.test", "two.test"))
	assertResolves(t, guest, "one.test.", publicServer)
	assertResolves(t, guest, "two.test.", secondServer)
	one, two := open(t, guest, publicServer), open(t, guest, secondServer)
	time.Sleep(time.Second) // so that neither address is open for new connections

	require.NoError(t, h.SetPolicy(t.Context(), 48, policy(t, "one.test", "three.test")))
	require.NoError(t, one.ping(patience), "the connection to a name that is still allowed")
	require.Error(t, two.ping(refusal), "the connection to a name that is not")
	_, err := lookup(guest, "", nowhere, "two.test.")
	require.Error(t, err)
	require.NoError(t, h.SetPolicy(t.Context(), 48, policy(t, "one.test")))
	require.NoError(t, one.ping(patience), "after a second change")

	require.NoError(t, h.SetPolicy(t.Context(), 48, Policy{AllowInternet: true}))
	require.NoError(t, one.ping(patience))
	assert.Nil(t, h.namesOf(48), "a forwarder without names")
	require.NoError(t, h.SetPolicy(t.Context(), 48, Policy{}))
	require.Error(t, one.ping(refusal))
	require.NoError(t, h.SetPolicy(t.Context(), 48, policy(t, "two.test")))
	assertResolves(t, guest, "two.test.", secondServer)
	assertReaches(t, guest, secondServer, hostUplink)
}

// A flow to a name server that is older than the policy must not go past the forwarder, nor stay lost.
func TestN09_AFlowOfQuestionsFollowsThePolicy(t *testing.T) {
	z := zone{"one.test.": {a(publicServer)}, "two.test.": {a(secondServer)}}
	h, outside := newNamedHost(t, z, time.Minute)
	z.serve(t, outside, resolverIP+":53")
	guest := newSandbox(t, h, 49, Policy{AllowInternet: true})
	var conn net.Conn
	require.NoError(t, in(guest, func() (err error) {
		conn, err = net.Dial("udp4", resolverIP+":53")
		return err
	}))
	defer conn.Close()
	ask := func(name string) (m dnsmessage.Message, err error) {
		m.ID, m.RecursionDesired = 7, true
		m.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}
		packed, err := m.Pack()
		require.NoError(t, err)
		conn.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 4096)
		for range 3 { // an ICMP error of the last question may meet this one
			if _, err = conn.Write(packed); err == nil {
				var n int
				if n, err = conn.Read(buf); err == nil {
					return m, m.Unpack(buf[:n])
				}
			}
		}
		return m, err
	}
	for _, step := range []struct {
		policy   Policy
		one, two dnsmessage.RCode
	}{
		{Policy{AllowInternet: true}, dnsmessage.RCodeSuccess, dnsmessage.RCodeSuccess},
		{policy(t, "one.test"), dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError},
		{Policy{AllowInternet: true}, dnsmessage.RCodeSuccess, dnsmessage.RCodeSuccess},
	} {
		require.NoError(t, h.SetPolicy(t.Context(), 49, step.policy))
		for name, want := range map[string]dnsmessage.RCode{"one.test.": step.one, "two.test.": step.two} {
			m, err := ask(name)
			require.NoError(t, err, "%+v", step.policy)
			assert.Equal(t, want, m.RCode, "%s under %+v", name, step.policy)
		}
	}
}

func TestN09_ALaterLifeTakesThePolicyOver(t *testing.T) {
	h, _ := newNamedHost(t, zone{"one.test.": {a(publicServer)}, "two.test.": {a(secondServer)}}, time.Minute)
	names := policy(t, "one.test")
	guest := newSandbox(t, h, 50, names)
	assertResolves(t, guest, "one.test.", publicServer)
	s := open(t, guest, publicServer)
	require.NoError(t, h.Close()) // what the death of the process ends
	_, err := lookup(guest, "", nowhere, "one.test.")
	require.Error(t, err, "nobody answers")
	assertReaches(t, guest, publicServer, hostUplink)

	require.NoError(t, h.AdoptPolicy(t.Context(), 50, names))
	require.NoError(t, s.ping(patience), "the connection that was open")
	assertReaches(t, guest, publicServer, hostUplink)
	assertResolves(t, guest, "one.test.", publicServer)

	// Killed after another policy was written down and before it was in force.
	require.NoError(t, h.Close())
	require.NoError(t, h.AdoptPolicy(t.Context(), 50, policy(t, "two.test")))
	require.Error(t, s.ping(refusal), "the policy that is written down does not hold")
	assertResolves(t, guest, "two.test.", secondServer)
	assertReaches(t, guest, secondServer, hostUplink)
	assertBarred(t, guest, at(publicServer)...)

	require.NoError(t, h.AdoptPolicy(t.Context(), 50, Policy{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}))
	assertReaches(t, guest, publicServer, hostUplink)
	require.Error(t, h.AdoptPolicy(t.Context(), 51, names), "a network that is not there")
	assert.Nil(t, h.namesOf(51))
}

func TestN09_AForwarderThatCannotStartChangesNothing(t *testing.T) {
	h, _ := newNamedHost(t, zone{"one.test.": {a(publicServer)}}, time.Minute)
	guest := newSandbox(t, h, 52, Policy{AllowInternet: true})
	inner, err := netns.Open(Slot(52).Netns())
	require.NoError(t, err)
	defer inner.Close()
	var taken net.Listener
	require.NoError(t, inner.Do(func() (err error) {
		taken, err = net.Listen("tcp4", TapIP+":53")
		return err
	}))
	err = h.SetPolicy(t.Context(), 52, policy(t, "one.test"))
	require.ErrorContains(t, err, "slot 52")
	assertReaches(t, guest, publicServer, hostUplink)
	require.NoError(t, taken.Close())
	require.NoError(t, h.SetPolicy(t.Context(), 52, policy(t, "one.test")))
	assertBarred(t, guest, at(publicServer)...)
}

func TestN09_AddressesOfNamesAreBounded(t *testing.T) {
	n := &names{known: map[netip.Addr]*opened{}}
	now := time.Now()
	for i := range maxAddresses {
		n.known[netip.AddrFrom4([4]byte{8, 8, byte(i >> 8), byte(i)})] = &opened{until: now.Add(time.Minute)}
	}
	fresh := map[netip.Addr]time.Duration{netip.MustParseAddr("9.9.9.9"): time.Minute}
	require.ErrorContains(t, n.makeRoom(fresh, now), "1024")
	require.NoError(t, n.makeRoom(map[netip.Addr]time.Duration{netip.MustParseAddr("8.8.0.1"): time.Minute}, now), "one that is open already")
	require.NoError(t, n.makeRoom(fresh, now.Add(time.Hour)), "expired ones make room")
	assert.Empty(t, n.known)
	var o opened
	for i := range 3 * maxNames {
		o.add(fmt.Sprint(i))
	}
	assert.Len(t, o.names, maxNames)
}

func TestN09_ForwardersLeaveNoDescriptorBehind(t *testing.T) {
	h, _ := newNamedHost(t, zone{"one.test.": {a(publicServer)}}, time.Minute)
	guest := newSandbox(t, h, 53, Policy{})
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	before := descriptors()
	noMore := func() bool { return descriptors() <= before } // those of earlier tests may still be closing
	const cycles = 10
	for range cycles {
		require.NoError(t, h.SetPolicy(t.Context(), 53, policy(t, "one.test")))
		assertResolves(t, guest, "one.test.", publicServer)
		_, err := lookup(guest, "tcp", nowhere, "one.test.")
		require.NoError(t, err)
		require.NoError(t, h.SetPolicy(t.Context(), 53, Policy{}))
	}
	require.Eventually(t, noMore, patience, 10*time.Millisecond, "what a sandbox without names costs")
	for slot := range Slot(cycles) {
		slot += 55
		require.NoError(t, h.CreateNetwork(t.Context(), slot, policy(t, "one.test")))
		defer func() { assert.NoError(t, h.RemoveNetwork(backgroundOf(t), slot)) }()
	}
	assert.GreaterOrEqual(t, descriptors(), before+cycles)
	require.NoError(t, h.Close())
	require.Eventually(t, noMore, patience, 10*time.Millisecond)
}

// All bounds at once fit into the messages by which the kernel is told.
func TestN09_TheLargestPolicyIsTaken(t *testing.T) {
	h, _ := newNamedHost(t, zone{}, time.Minute)
	rules := egress.Rules{DenyOut: []string{"0.0.0.0/0"}}
	for i := range egress.MaxEntries - 1 {
		rules.AllowOut = append(rules.AllowOut, fmt.Sprintf("198.51.%d.0/32", i))
		rules.DenyOut = append(rules.DenyOut, fmt.Sprintf("8.8.%d.0/25", i))
	}
	rules.AllowOut = append(rules.AllowOut, "*.test")
	largest, err := rules.Policy()
	require.NoError(t, err)
	guest := newSandbox(t, h, 54, largest)
	var found []nameserver.Address
	for i := range maxAddresses {
		found = append(found, nameserver.Address{Addr: netip.AddrFrom4([4]byte{198, 51, byte(100 + i>>8), byte(i)}), TTL: time.Minute})
	}
	n := h.namesOf(54)
	require.NoError(t, n.learn("all.test.", found))
	require.NoError(t, n.learn("again.test.", found))
	require.Error(t, n.learn("more.test.", []nameserver.Address{{Addr: netip.MustParseAddr("9.9.9.9")}}))
	require.NoError(t, h.SetPolicy(t.Context(), 54, largest))
	assertReaches(t, guest, publicServer, hostUplink)
	assert.Len(t, n.known, maxAddresses)
}

// While a policy is replaced over and over, what both allow is never cut and what both deny never passes.
func TestN09_NothingSlipsThroughAChange(t *testing.T) {
	h, outside := newNamedHost(t, zone{"one.test.": {a(publicServer)}}, time.Minute)
	guest := newSandbox(t, h, 66, policy(t, "one.test"))
	assertResolves(t, guest, "one.test.", publicServer)
	s := open(t, guest, publicServer)
	var flood net.Conn
	require.NoError(t, in(guest, func() (err error) {
		flood, err = net.Dial("udp4", secondServer+":99")
		return err
	}))
	defer flood.Close()
	policies := []Policy{policy(t, "one.test"), policy(t, "one.test", "other.test"), policy(t, "*.test", "192.0.2.0/24")}
	sent := 0
	got := received(t, outside, secondServer+":99", func() {
		for i := range 40 {
			changed := make(chan error, 1)
			go func() { changed <- h.SetPolicy(t.Context(), 66, policies[i%len(policies)]) }()
			for pending := true; pending; {
				_, _ = flood.Write([]byte("flood")) // told "prohibited" now and then, which is what it is here for
				sent++
				require.NoError(t, s.ping(patience), "change %d", i)
				select {
				case err := <-changed:
					require.NoError(t, err)
					pending = false
				default:
				}
			}
		}
	})
	assert.Empty(t, got, "of %d", sent)
	assert.Greater(t, sent, 100)
}
