package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/impl/netns"
	"wrenn/impl/step"
)

func TestN01_CreateRefusesSlotsOutOfRange(t *testing.T) {
	h := newHost(t)
	for _, s := range []Slot{0, -1, 32768} {
		require.ErrorIs(t, h.CreateNetwork(t.Context(), s, Policy{}), ErrInvalidSlot)
		require.ErrorIs(t, h.RemoveNetwork(t.Context(), s), ErrInvalidSlot)
		require.ErrorIs(t, h.SetPolicy(t.Context(), s, Policy{}), ErrInvalidSlot)
	}
}

// named is a policy whose networks have all parts that there are.
var named = Policy{AllowInternet: true, Domains: []string{"example.com"}}

func TestN04_AnErrorAtAnyStepLeavesNothing(t *testing.T) {
	h := setUp(t)
	before := census(t)
	boom := errors.New("boom")
	for i, name := range step.Names(h.CreateSteps(60, named)) {
		t.Run(name, func(t *testing.T) {
			steps := h.CreateSteps(60, named)
			do := steps[i].Do
			steps[i].Do = func(ctx context.Context) error { return errors.Join(do(ctx), boom) }
			_, err := step.Run(t.Context(), CreateAct, steps)
			require.ErrorIs(t, err, boom)
			require.ErrorContains(t, err, CreateAct+": step "+name)
			assert.NotContains(t, err.Error(), "undo", "an undo failed too")
			assert.Equal(t, before, census(t))
			assert.Nil(t, h.namesOf(60))
			require.NoError(t, h.CreateNetwork(t.Context(), 60, Policy{}), "the slot is usable")
			require.NoError(t, h.RemoveNetwork(t.Context(), 60))
		})
	}
}

func TestN04_CancelledCreateLeavesNothing(t *testing.T) {
	h := setUp(t)
	before := census(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, h.CreateNetwork(ctx, 61, Policy{}), context.Canceled)
	assert.Equal(t, before, census(t))
}

func TestN05_RemoveOfAHalfMadeNetwork(t *testing.T) {
	h := setUp(t)
	before := census(t)
	steps := h.CreateSteps(62, named)
	for made := range len(steps) + 1 {
		t.Run(fmt.Sprintf("%d steps", made), func(t *testing.T) {
			for _, s := range h.CreateSteps(62, named)[:made] {
				require.NoError(t, s.Do(t.Context()))
			}
			require.NoError(t, h.RemoveNetwork(t.Context(), 62))
			assert.Equal(t, before, census(t))
			require.NoError(t, h.RemoveNetwork(t.Context(), 62), "twice")
			assert.Equal(t, before, census(t))
		})
	}
}

func TestN05_RemoveTriesEveryStepAndJoinsErrors(t *testing.T) {
	h := setUp(t)
	require.NoError(t, h.CreateNetwork(t.Context(), 63, Policy{}))
	// Something in the namespace's place that cannot be removed: a directory with a file.
	path := filepath.Join(netns.Dir, Slot(63).Netns())
	require.NoError(t, netns.Delete(Slot(63).Netns()))
	require.NoError(t, os.MkdirAll(filepath.Join(path, "file"), 0o755))
	err := h.RemoveNetwork(t.Context(), 63)
	require.ErrorContains(t, err, "step netns")
	require.NoError(t, os.RemoveAll(path))
	assert.NotContains(t, census(t), Slot(63).Veth())
	assert.NotContains(t, census(t), Slot(63).HostIP().String())
	require.NoError(t, h.RemoveNetwork(t.Context(), 63))
}

func TestN05_EachStepOfRemoveDoesItsPart(t *testing.T) {
	h := setUp(t)
	before := census(t)
	require.NoError(t, h.CreateNetwork(t.Context(), 69, named))
	slot := Slot(69)
	present := func() string {
		if h.namesOf(slot) != nil {
			return census(t) + "forwarder"
		}
		return census(t)
	}
	parts := map[string]string{"names": "forwarder", "route": slot.HostIP().String(), "veth": slot.Veth(), "netns": slot.Netns()}
	for _, s := range h.RemoveSteps(slot) {
		require.Contains(t, present(), parts[s.Name])
		require.NoError(t, s.Do(t.Context()))
		assert.NotContains(t, present(), parts[s.Name], "after step %s", s.Name)
	}
	assert.Equal(t, before, census(t))
}

func TestN05_EveryUndoIsAlsoAStepOfRemove(t *testing.T) {
	h := newHost(t)
	var undone []string
	for _, s := range slices.Backward(h.CreateSteps(1, Policy{})) {
		if s.Undo != nil {
			undone = append(undone, s.Name)
		}
	}
	assert.Equal(t, undone, step.Names(h.RemoveSteps(1)))
}

func TestN04_CreateOverSomethingDoesNotHarmIt(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	guest := newSandbox(t, h, 64, Policy{AllowInternet: true})
	before := census(t)
	require.Error(t, h.CreateNetwork(t.Context(), 64, Policy{}))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, h.CreateNetwork(cancelled, 64, Policy{}))
	assert.Equal(t, before, census(t))
	assertReaches(t, guest, publicServer, hostUplink)

	shell(t, "ip link add "+Slot(65).Veth()+" type veth peer name somebodys")
	defer shell(t, "ip link del "+Slot(65).Veth())
	before = census(t)
	require.ErrorContains(t, h.CreateNetwork(t.Context(), 65, Policy{}), "step veth")
	assert.Equal(t, before, census(t))
}

func TestN03_NamesAreFreeAgainAtOnce(t *testing.T) {
	h := setUp(t)
	before := census(t)
	for range 20 {
		require.NoError(t, h.CreateNetwork(t.Context(), 66, Policy{AllowInternet: true}))
		require.NoError(t, h.RemoveNetwork(t.Context(), 66))
	}
	assert.Equal(t, before, census(t))
}

func TestN04_ManyAtOnce(t *testing.T) {
	h := setUp(t)
	before := census(t)
	var wg sync.WaitGroup
	for slot := Slot(100); slot < 132; slot++ {
		wg.Go(func() {
			if assert.NoError(t, h.CreateNetwork(t.Context(), slot, Policy{AllowInternet: true})) {
				assert.NoError(t, h.RemoveNetwork(t.Context(), slot))
			}
		})
	}
	wg.Wait()
	assert.Equal(t, before, census(t))
}

func TestN07_TheTapFitsBothVMMs(t *testing.T) {
	h := setUp(t)
	require.NoError(t, h.CreateNetwork(t.Context(), 67, Policy{}))
	t.Cleanup(func() { require.NoError(t, h.RemoveNetwork(backgroundOf(t), 67)) })
	inner, err := netns.Open(Slot(67).Netns())
	require.NoError(t, err)
	defer inner.Close()
	var before *netlink.LinkAttrs
	look := func() *netlink.LinkAttrs {
		var link netlink.Link
		require.NoError(t, inner.Do(func() (err error) { link, err = netlink.LinkByName(TapName); return err }))
		return link.Attrs()
	}
	before = look()
	assert.Equal(t, 5000, before.TxQLen)
	assert.Equal(t, strings.ToLower(TapMAC), before.HardwareAddr.String())
	assert.Equal(t, []string{TapIP + "/30 " + TapName}, addressesOf(t, inner, TapName))
	var neighbours []netlink.Neigh
	require.NoError(t, inner.Do(func() (err error) { neighbours, err = netlink.NeighList(before.Index, netlink.FAMILY_V4); return err }))
	require.Len(t, neighbours, 1, "the first packet to a booting guest must not wait for ARP")
	assert.Equal(t, GuestIP, neighbours[0].IP.String())
	assert.Equal(t, strings.ToLower(GuestMAC), neighbours[0].HardwareAddr.String())
	assert.Equal(t, netlink.NUD_PERMANENT, neighbours[0].State)
	for name, flags := range map[string]uint16{
		"firecracker":            unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR,
		"qemu with vnet_hdr=on":  unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR,
		"qemu with vnet_hdr=off": unix.IFF_TAP | unix.IFF_NO_PI,
	} {
		file := attach(t, inner, TapName, flags)
		during := look()
		assert.Equal(t, before.Index, during.Index, "%s made another device", name)
		require.NoError(t, file.Close())
		assert.Equal(t, 5000, look().TxQLen, "after %s", name)
		assert.Equal(t, before.HardwareAddr, look().HardwareAddr, "after %s", name)
	}
}

func addressesOf(t *testing.T, ns *netns.Handle, link string) []string {
	t.Helper()
	var found []string
	for _, a := range addresses(t, ns, netlink.FAMILY_V4) {
		if strings.Contains(a, link) {
			found = append(found, strings.TrimSpace(a))
		}
	}
	return found
}

func TestNoDescriptorIsLeaked(t *testing.T) {
	h := setUp(t)
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	require.NoError(t, h.RemoveNetwork(t.Context(), 68))
	before := count()
	for range 3 {
		require.NoError(t, h.CreateNetwork(t.Context(), 68, Policy{AllowInternet: true}))
		require.Error(t, h.CreateNetwork(t.Context(), 68, Policy{}))
		require.NoError(t, h.SetPolicy(t.Context(), 68, Policy{}))
		require.NoError(t, h.RemoveNetwork(t.Context(), 68))
	}
	assert.Equal(t, before, count())
}

// The two calls of iptables that look for its version and abilities take no lock.
func TestN10_EveryIptablesCallWaits(t *testing.T) {
	newHost(t)
	actual, err := exec.LookPath("iptables")
	require.NoError(t, err)
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >> %s\nexec %s \"$@\"\n", log, actual)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "iptables"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	h := newHost(t)
	require.NoError(t, h.Setup(t.Context()))
	shell(t, "iptables -w -F WRENN-INPUT")
	require.NoError(t, h.Setup(t.Context()))
	_, err = Inventory(t.Context())
	require.NoError(t, err)
	require.NoError(t, h.Teardown(t.Context()))
	calls, err := os.ReadFile(log)
	require.NoError(t, err)
	var waited int
	for line := range strings.Lines(string(calls)) {
		if line == "--version\n" {
			continue
		}
		assert.Regexp(t, `(--wait|-w)\b`, line)
		waited++
	}
	assert.Greater(t, waited, 20)
}

func TestN06_ReclaimTakesOrphansAndNothingElse(t *testing.T) {
	h := setUp(t)
	newOutside(t)
	guest := newSandbox(t, h, 200, Policy{AllowInternet: true})
	shell(t, `
		for n in wrenn-ns-abc wrenn-ns-0 wrenn-ns-99999 wrenn-ns-07 wrenn-ns- mine; do ip netns add $n; done
		ip link add wrenn-veth-x type veth peer name wrenn-veth0
		ip link add wrenn-veth-7 type veth peer name wrenn-veth07
		ip tuntap add wrenn-veth77 mode tap
		ip route add 10.11.9.9/32 dev uplink
		ip route add 10.11.0.0/24 dev uplink proto 217
		ip route add 10.13.0.1/32 dev uplink proto 217`)
	defer shell(t, `
		for n in wrenn-ns-abc wrenn-ns-0 wrenn-ns-99999 wrenn-ns-07 wrenn-ns- mine; do ip netns del $n; done
		ip link del wrenn-veth-x; ip link del wrenn-veth-7; ip link del wrenn-veth77
		ip route del 10.11.9.9/32; ip route del 10.11.0.0/24; ip route del 10.13.0.1/32`)
	before := census(t)

	var want []Slot
	for i := range h.CreateSteps(1, Policy{}) {
		slot := Slot(300 + i)
		want = append(want, slot)
		for _, s := range h.CreateSteps(slot, Policy{})[:i+1] {
			require.NoError(t, s.Do(t.Context()))
		}
	}
	// A slot whose veth name another kind of link has.
	require.NoError(t, os.WriteFile(filepath.Join(netns.Dir, Slot(77).Netns()), nil, 0))
	want = append([]Slot{77}, want...)
	// Killed between the two halves of making a namespace; a veth alone; a route alone.
	require.NoError(t, os.WriteFile(filepath.Join(netns.Dir, Slot(400).Netns()), nil, 0))
	shell(t, "ip link add wrenn-veth401 type veth peer name rest; ip route add 10.11.1.146/32 dev uplink proto 217")
	want = append(want, 400, 401, 402)

	alive := newAllocator(t, MaxSlot)
	require.NoError(t, alive.Claim(200))
	got, err := h.CleanupStaleNamespaces(t.Context(), alive)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.Equal(t, before, census(t))
	assertReaches(t, guest, publicServer, hostUplink)

	got, err = h.CleanupStaleNamespaces(t.Context(), alive)
	require.NoError(t, err)
	assert.Empty(t, got, "the second time there is nothing left")
	assert.Equal(t, before, census(t))
}

func TestN06_ReclaimGoesOnPastErrorsAndNamesThem(t *testing.T) {
	h := setUp(t)
	require.NoError(t, h.CreateNetwork(t.Context(), 500, Policy{}))
	path := filepath.Join(netns.Dir, Slot(501).Netns())
	require.NoError(t, os.MkdirAll(filepath.Join(path, "file"), 0o755))
	require.NoError(t, h.CreateNetwork(t.Context(), 502, Policy{}))
	slots := newAllocator(t, MaxSlot)
	got, err := h.CleanupStaleNamespaces(t.Context(), slots)
	require.ErrorContains(t, err, "slot 501")
	assert.Equal(t, []Slot{500, 502}, got)
	assert.Equal(t, 1, slots.Held(), "what could not be cleared must not be given out")
	require.NoError(t, os.RemoveAll(path))
}

func TestN06_ReclaimBesideCreates(t *testing.T) {
	h := setUp(t)
	before := census(t)
	done := make(chan error, 1)
	creating := newAllocator(t, MaxSlot)
	for slot := Slot(600); slot < 630; slot++ {
		require.NoError(t, creating.Claim(slot))
	}
	go func() {
		for slot := Slot(600); slot < 630; slot++ {
			if err := h.CreateNetwork(t.Context(), slot, Policy{}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	deadline := time.After(60 * time.Second)
	for running := true; running; {
		_, err := h.CleanupStaleNamespaces(t.Context(), creating)
		require.NoError(t, err)
		select {
		case err := <-done:
			require.NoError(t, err)
			running = false
		case <-deadline:
			t.Fatal("creates hang")
		default:
		}
	}
	got, err := h.CleanupStaleNamespaces(t.Context(), newAllocator(t, MaxSlot))
	require.NoError(t, err)
	assert.Len(t, got, 30)
	assert.Equal(t, before, census(t))
}
