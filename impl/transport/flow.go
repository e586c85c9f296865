package transport

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// interactive is TC_PRIO_INTERACTIVE of linux/pkt_sched.h, the most that needs no privilege. pfifo_fast and fq,
	// which most hosts' cards have, send its packets first; fq_codel and cake do not look at it.
	interactive = 6
	// lowDelay is RFC 1349's "minimize delay", which OpenSSH has put on terminals for twenty years. A Linux router
	// makes priority 6 of it again, and cake puts it with what is sensitive to delay. (As a DSCP it is 4, which
	// names no class that others would treat as less than best effort.)
	lowDelay = 0x10
)

// marks are the options by which a connection's packets go first, or no longer do. IP_TOS changes the socket's
// priority too, so SO_PRIORITY comes after it. On a socket of the other family each fails, and harms nothing.
func marks(on bool) []option {
	tos, priority := 0, 0
	if on {
		tos, priority = lowDelay, interactive
	}
	return []option{
		{unix.IPPROTO_IP, unix.IP_TOS, tos}, {unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos}, {unix.SOL_SOCKET, unix.SO_PRIORITY, priority},
	}
}

// What a stream may send ahead of everybody else. A person who types sees a few bytes per key, an editor that
// paints its screen anew some ten KiB. A program that prints without end is no more urgent than a download: a
// host's card sends a band only when the one before it is empty, so it could keep all other users' traffic off it.
const (
	floodBurst = 256 << 10 // bytes at once
	floodRate  = 1 << 20   // bytes per second for longer
)

// Flow watches what one stream sends, and takes the marks from its connection for as long as that is a flood.
// It belongs to the goroutine that sends.
type Flow struct {
	conn *served
	left float64 // of what may be sent ahead of others, in bytes
	last time.Time
}

// Sent notes that n bytes are about to be sent.
func (f *Flow) Sent(n int) {
	if f == nil {
		return
	}
	now := time.Now()
	if !f.last.IsZero() {
		f.left = min(f.left+now.Sub(f.last).Seconds()*floodRate, floodBurst)
	}
	f.last = now
	f.left = max(f.left-float64(n), -floodRate) // a second of calm makes a terminal of it again
	if calm := f.left > 0; calm != f.conn.marked.Load() {
		f.conn.marked.Store(calm)
		setOn(f.conn.TCPConn, marks(calm))
	}
}
