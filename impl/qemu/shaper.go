package qemu

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shaper enforces the bandwidth limits of network interfaces with traffic control on the TAP, since QEMU
// has none. What the guest receives leaves the host by the TAP: a token bucket filter at its root. What
// the guest sends enters by it: the ingress hook redirects every packet to an intermediate device (ifb),
// where the same filter stands. All of it lives in the network namespace of the process. One-time
// bursts and limits on operations have no counterpart and are not enforced. Packets that are marked as
// interactive wait for no others (bands.go).
type shaper struct {
	taps map[string]bool // names of the TAPs that may carry limits
}

// apply sets, changes or lifts the limits of the given interfaces.
func (s *shaper) apply(nics []nic) error {
	for _, n := range nics {
		if err := s.applyOne(n); err != nil {
			return fmt.Errorf("%s: %w", n.HostDevName, err)
		}
	}
	return nil
}

func (s *shaper) applyOne(n nic) error {
	if s.taps == nil {
		s.taps = map[string]bool{}
	}
	s.taps[n.HostDevName] = true
	tap, err := netlink.LinkByName(n.HostDevName)
	if err != nil {
		return fmt.Errorf("find the device: %w", err)
	}
	if err := setBucket(tap, bandwidth(n.RxRateLimiter)); err != nil {
		return fmt.Errorf("limit what the guest receives: %w", err)
	}
	if err := limitIngress(tap, bandwidth(n.TxRateLimiter)); err != nil {
		return fmt.Errorf("limit what the guest sends: %w", err)
	}
	return nil
}

func bandwidth(l *rateLimiter) *tokenBucket {
	if l == nil {
		return nil
	}
	return l.Bandwidth
}

// dropQdisc takes a qdisc away; one that is not there is no error.
func dropQdisc(q netlink.Qdisc) error {
	err := netlink.QdiscDel(q)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// limitIngress builds TAP ingress → redirect → ifb with a bucket, or takes it down, also where an earlier
// process left it.
func limitIngress(tap netlink.Link, b *tokenBucket) error {
	name := ifbName(tap.Attrs().Name)
	if !b.limits() {
		return unlimitIngress(tap, name)
	}
	ifb, err := findOrAddIFB(name)
	if err != nil {
		return err
	}
	if err := setBucket(ifb, b); err != nil {
		return fmt.Errorf("set the bucket of %s: %w", name, err)
	}
	return redirect(tap, ifb)
}

// unlimitIngress touches nothing unless our ifb is there: the hook could be somebody else's.
func unlimitIngress(tap netlink.Link, name string) error {
	ifb, err := netlink.LinkByName(name)
	if isMissing(err) {
		return nil
	}
	if err == nil {
		// The redirection goes first: packets sent to a device that is gone are lost.
		err = dropQdisc(ingressOf(tap))
	}
	if err == nil {
		err = netlink.LinkDel(ifb)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func findOrAddIFB(name string) (netlink.Link, error) {
	ifb, err := netlink.LinkByName(name)
	if isMissing(err) {
		ifb = &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: 1000}}
		err = netlink.LinkAdd(ifb)
	}
	if err == nil {
		err = netlink.LinkSetUp(ifb)
	}
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return ifb, nil
}

func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

func ingressOf(tap netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: tap.Attrs().Index,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
}

// redirect sends everything that enters by tap to ifb. A change of the rate finds it done already.
func redirect(tap, ifb netlink.Link) error {
	ingress := ingressOf(tap)
	if err := netlink.QdiscAdd(ingress); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the ingress hook: %w", err)
	}
	filters, err := netlink.FilterList(tap, ingress.Handle)
	if err != nil {
		return fmt.Errorf("list the ingress filters: %w", err)
	}
	for _, f := range filters {
		if redirectsTo(f, ifb.Attrs().Index) {
			return nil
		}
	}
	everything := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: tap.Attrs().Index, Parent: ingress.Handle,
			Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{netlink.NewMirredAction(ifb.Attrs().Index)},
	}
	if err := netlink.FilterAdd(everything); err != nil {
		return fmt.Errorf("redirect to %s: %w", ifb.Attrs().Name, err)
	}
	return nil
}

func redirectsTo(f netlink.Filter, index int) bool {
	u32, ok := f.(*netlink.U32)
	if !ok {
		return false
	}
	return slices.ContainsFunc(u32.Actions, func(a netlink.Action) bool {
		mirred, ok := a.(*netlink.MirredAction)
		return ok && mirred.Ifindex == index
	})
}

// remove lifts every limit, so that a TAP that outlives the process carries none.
func (s *shaper) remove() error {
	var errs []error
	for name := range s.taps {
		tap, err := netlink.LinkByName(name)
		switch {
		case isMissing(err):
			errs = append(errs, removeIFB(ifbName(name)))
		case err != nil:
			errs = append(errs, fmt.Errorf("find %s: %w", name, err))
		default:
			errs = append(errs, setBucket(tap, nil), limitIngress(tap, nil))
		}
	}
	s.taps = nil
	return errors.Join(errs...)
}

// removeIFB is for a TAP that is gone, and its hook with it.
func removeIFB(name string) error {
	ifb, err := netlink.LinkByName(name)
	if isMissing(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(ifb)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// ifbName derives a name of at most 15 bytes, which is all that an interface may have.
func ifbName(tap string) string {
	if len(tap) <= 11 {
		return "ifb-" + tap
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(tap)) // a hash's Write never fails
	return fmt.Sprintf("ifb-%08x", h.Sum32())
}
