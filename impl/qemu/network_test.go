package qemu

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"wrenn/impl/need"
)

// makeTAP makes a persistent TAP in the test's own network namespace.
func makeTAP(t *testing.T, name string, flags netlink.TuntapFlag) netlink.Link {
	t.Helper()
	need.Root(t)
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP, Flags: flags | netlink.TUNTAP_NO_PI}
	require.NoError(t, netlink.LinkAdd(link))
	for _, fd := range link.Fds {
		require.NoError(t, fd.Close())
	}
	require.NoError(t, netlink.LinkSetUp(link))
	t.Cleanup(func() { assert.NoError(t, netlink.LinkDel(link)) })
	found, err := netlink.LinkByName(name)
	require.NoError(t, err)
	return found
}

const plainTAP = netlink.TUNTAP_VNET_HDR

func TestInterfacesBeforeTheStart(t *testing.T) {
	makeTAP(t, "tap0", plainTAP)
	makeTAP(t, "tap1", plainTAP)
	makeTAP(t, "tapmq", plainTAP|netlink.TUNTAP_MULTI_QUEUE)
	m := newLiveMachine(t)
	put := func(id, tap, mac string) string {
		return fmt.Sprintf(`{"iface_id":%q,"host_dev_name":%q,"guest_mac":%q}`, id, tap, mac)
	}
	m.must("PUT", "/network-interfaces/a", put("a", "tap0", "06:00:00:00:00:01"))
	m.refused("PUT", "/network-interfaces/b", put("b", "tap0", "06:00:00:00:00:02"),
		"Could not create the network device: Open tap device failed: Error while creating ifreq structure: Device or resource busy (os error 16). Invalid TUN/TAP Backend provided by tap0.")
	m.refused("PUT", "/network-interfaces/b", put("b", "tap1", "06:00:00:00:00:01"), "The MAC address is already in use: 06:00:00:00:00:01")
	m.refused("PUT", "/network-interfaces/b", put("b", "tapmq", "06:00:00:00:00:02"), "Invalid argument (os error 22)")
	m.refused("PUT", "/network-interfaces/b", put("b", "lo", "06:00:00:00:00:02"), "Invalid argument (os error 22)")
	m.refused("PUT", "/network-interfaces/b", put("b", "an-interface-name-too-long", "06:00:00:00:00:02"), "Invalid interface name")
	m.refused("PUT", "/network-interfaces/b", put("b", "tap9", "06:00:00:00:00:02"), "provided by tap9")
	_, err := netlink.LinkByName("tap9")
	require.Error(t, err, "a missing TAP must not come into being")
	m.refused("PUT", "/network-interfaces/b", put("b", "tap1", "rubbish"), "expected a MAC address")
	m.refused("PUT", "/network-interfaces/b", `{"iface_id":"b","host_dev_name":"tap1","mtu":67}`, "MTU")
	// Configured again, a takes over the other TAP and frees the first.
	m.must("PUT", "/network-interfaces/a", put("a", "tap1", "06:00:00:00:00:01"))
	m.must("PUT", "/network-interfaces/b", put("b", "tap0", "06:00:00:00:00:02"))
	m.must("PUT", "/network-interfaces/b", put("b", "tap0", "06:00:00:00:00:03"))
	m.powerOn()
	m.refused("PUT", "/network-interfaces/c", put("c", "tap0", "06:00:00:00:00:09"), "after starting")
}

// bucketOf reads the token bucket filter at a link's root back from the kernel, nil if there is none.
func bucketOf(t *testing.T, name string) *netlink.Tbf {
	t.Helper()
	link, err := netlink.LinkByName(name)
	require.NoError(t, err)
	qdiscs, err := netlink.QdiscList(link)
	require.NoError(t, err)
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok {
			return tbf
		}
	}
	return nil
}

func burstOf(b *netlink.Tbf) float64 { return float64(b.Buffer) * 64e-9 * float64(b.Rate) }

func TestN07_NetworkLimits(t *testing.T) {
	tap := makeTAP(t, "tap0", plainTAP)
	m := newLiveMachine(t)
	m.must("PUT", "/network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"tap0",
		"tx_rate_limiter":{"bandwidth":{"size":100000000,"refill_time":500}},
		"rx_rate_limiter":{"bandwidth":{"size":2000000,"refill_time":1000}}}`)
	m.powerOn()

	rx := bucketOf(t, "tap0")
	require.NotNil(t, rx, "what the guest receives is limited at the TAP")
	assert.EqualValues(t, 2_000_000, rx.Rate)
	assert.InEpsilon(t, 2_000_000, burstOf(rx), 0.01)
	assert.EqualValues(t, minQueue, rx.Limit)
	tx := bucketOf(t, "ifb-tap0")
	require.NotNil(t, tx, "what the guest sends is limited at the ifb")
	assert.EqualValues(t, 200_000_000, tx.Rate)
	assert.InEpsilon(t, 100_000_000, burstOf(tx), 0.01)
	assert.EqualValues(t, 10_000_000, tx.Limit, "50 ms")
	assert.True(t, ifbOf(t, tap))

	// Only the bucket that is given changes; an empty one lifts the limit.
	m.must("PATCH", "/network-interfaces/eth0", `{"iface_id":"eth0","tx_rate_limiter":{"bandwidth":{"size":5000000,"refill_time":1000}}}`)
	assert.EqualValues(t, 5_000_000, bucketOf(t, "ifb-tap0").Rate)
	assert.EqualValues(t, 2_000_000, bucketOf(t, "tap0").Rate)
	m.must("PATCH", "/network-interfaces/eth0", `{"iface_id":"eth0","rx_rate_limiter":{"bandwidth":{"size":0,"refill_time":0}}}`)
	assert.Nil(t, bucketOf(t, "tap0"))
	m.must("PATCH", "/network-interfaces/eth0", `{"iface_id":"eth0","tx_rate_limiter":{"bandwidth":{"size":0,"refill_time":0}}}`)
	assertNoIngress(t, tap)
	m.must("PATCH", "/network-interfaces/eth0", `{"iface_id":"eth0","tx_rate_limiter":{"bandwidth":{"size":7000000,"refill_time":1000}}}`)
	assert.EqualValues(t, 7_000_000, bucketOf(t, "ifb-tap0").Rate)
	assert.True(t, ifbOf(t, tap), "redirected to the new ifb")
	m.refused("PATCH", "/network-interfaces/eth9", `{"iface_id":"eth9"}`, "Invalid interface ID - not found.")

	m.close()
	assertNoIngress(t, tap)
}

func ifbOf(t *testing.T, tap netlink.Link) bool {
	t.Helper()
	ifb, err := netlink.LinkByName(ifbName(tap.Attrs().Name))
	require.NoError(t, err)
	filters, err := netlink.FilterList(tap, netlink.MakeHandle(0xffff, 0))
	require.NoError(t, err)
	return slices.ContainsFunc(filters, func(f netlink.Filter) bool { return redirectsTo(f, ifb.Attrs().Index) })
}

// A shim that was killed leaves its limits on the TAP; the next one replaces or lifts them.
func TestLimitsOfAKilledProcessAreTakenOver(t *testing.T) {
	tap := makeTAP(t, "tap0", plainTAP)
	limited := nic{IfaceID: "eth0", HostDevName: "tap0", TxRateLimiter: &rateLimiter{Bandwidth: &tokenBucket{Size: 5_000_000, RefillTime: 1000}},
		RxRateLimiter: &rateLimiter{Bandwidth: &tokenBucket{Size: 5_000_000, RefillTime: 1000}}}
	require.NoError(t, (&shaper{}).apply([]nic{limited}))
	limited.TxRateLimiter.Bandwidth.Size = 9_000_000
	require.NoError(t, (&shaper{}).apply([]nic{limited}))
	assert.EqualValues(t, 9_000_000, bucketOf(t, "ifb-tap0").Rate)
	assert.True(t, ifbOf(t, tap))
	require.NoError(t, (&shaper{}).apply([]nic{{IfaceID: "eth0", HostDevName: "tap0"}}))
	assert.Nil(t, bucketOf(t, "tap0"))
	assertNoIngress(t, tap)
}

// assertNoIngress finds neither the ifb nor the hook: a redirection that stays would lose every packet.
func assertNoIngress(t *testing.T, tap netlink.Link) {
	t.Helper()
	_, err := netlink.LinkByName(ifbName(tap.Attrs().Name))
	require.Error(t, err, "the ifb is left behind")
	qdiscs, err := netlink.QdiscList(tap)
	require.NoError(t, err)
	for _, q := range qdiscs {
		assert.NotEqual(t, "ingress", q.Type())
	}
}

func TestIFBNamesFit(t *testing.T) {
	for _, tap := range []string{"t", "tap0", "12345678901", "123456789012", "123456789012345"} {
		assert.LessOrEqual(t, len(ifbName(tap)), 15)
	}
	assert.NotEqual(t, ifbName("123456789012345"), ifbName("123456789012346"))
}
