package qemu

import (
	"time"

	"github.com/vishvananda/netlink"
)

// queueTime is how long a packet may wait for tokens before it is dropped. 50 ms is what a guest's own
// virtio queue of 256 frames holds at 50 Mbit/s.
const queueTime = 50 * time.Millisecond

// minQueue is the least room of the queue, in bytes: four unsegmented frames of 64 KiB.
const minQueue = 256 << 10

// setBucket puts a token bucket filter at link's root, or takes it away where b limits nothing.
func setBucket(link netlink.Link, b *tokenBucket) error {
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if !b.limits() {
		return dropQdisc(&netlink.Tbf{QdiscAttrs: attrs})
	}
	rate := max(b.perSecond(), 1)
	// A frame larger than the bucket would never pass; 64 KiB is the largest a guest can send.
	burst := max(b.Size, 64<<10)
	queue := max(uint64(queueTime.Seconds()*float64(rate)), minQueue)
	limit := uint32(min(queue, 1<<32-1))
	if err := netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs,
		Rate:       rate,
		Buffer:     uint32(min(netlinkTicks(rate, burst), 1<<32-1)),
		Limit:      limit,
	}); err != nil {
		return err
	}
	return setBands(link, attrs.Handle, limit)
}

// netlinkTicks is how long burst bytes take at rate bytes per second, in the kernel's scheduling ticks of
// 64 ns, which is how a filter's bucket is given.
func netlinkTicks(rate, burst uint64) uint64 {
	const tick = 64e-9
	return uint64(float64(burst) / float64(rate) / tick)
}
