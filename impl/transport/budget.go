package transport

import "time"

// The control of what a client is sent in bulk. It is less than best effort, as LEDBAT (RFC 6817) is, but not against
// everybody: it looks at the queue before the slowest link on the way, and holds back so much that it stays short.
const (
	// pace is how often is looked: acknowledgements smooth a round trip over 8 samples, so that a change of the queue
	// shows within some 50 ms.
	pace = 50 * time.Millisecond
	// shortQueue is the most that the queue is to be, in time: less than a tenth of what a person who types begins to feel, and
	// a little more than what a token bucket of 32 KiB takes at 100 Mbit/s, which is there whatever is sent.
	shortQueue = 3 * time.Millisecond
	// longQueue is what is acted upon when it lasts for two looks. Round trips over a network without a queue differ
	// by less, also on a busy machine.
	longQueue = 8 * time.Millisecond
	// firstCut leaves the link a part in which the queue that is there drains.
	firstCut = 0.8
	// gain is how much of the capacity is given or taken for good per look. It is for an empty queue, and grows as it is
	// too long up to steepest times. lean is how much more is then taken for the moment, which damps the swinging.
	gain, lean, steepest = 0.006, 0.05, -8
	// regains is how much faster is given again what was there before.
	regains = 4
	// busy is the part of the capacity below which what arrives shows that no queue can be standing any more, whatever
	// smoothed round trips say.
	busy = 0.7
	// least and rests bound what is sent, in parts of the capacity that was seen: at rests no queue forms. Whether the
	// link has become faster shows only beyond it, so for that up to beyond is sent until there is a queue. tries
	// after the last one that is tried again.
	least, rests, beyond = 0.5, 0.95, 1.1
	tries                = 5 * time.Second
	// makes is the part of the capacity beyond which a queue is of our making, not one that drains or others'.
	makes = 0.9
	// learns is how much of the capacity is corrected per look by what arrives through a queue. forgets is how much of it
	// is forgotten without one, half in 3 minutes: bunches make it look larger than it is.
	learns, forgets = 0.1, 0.0002
	// After slower looks in a row with a long queue the link has become slower. After inVain of them, or twice as many
	// with any, the queue is not ours, and for holdOff nothing is held back.
	slower, inVain, holdOff = 30, 60, 5 * time.Second
	// smooth is the part of one look in what is taken to arrive: acknowledgements come in bunches.
	smooth = 0.2
)

// budget is how much one client may be sent in bulk.
type budget struct {
	rate     float64   // bytes per second; 0 is no bound
	capacity float64   // the most that was seen to arrive, in bytes per second
	arrives  float64   // in bytes per second, smoothed
	before   float64   // what arrived at the look before
	long     int       // looks in a row with a long queue, since the first cut
	stands   int       // looks in a row with a queue
	queued   time.Time // when there last was a queue of our making
	until    time.Time // there is no bound until then
}

// next says what may be sent until the next look, in bytes per second, 0 being no bound: at now, with so much having
// arrived per second since the last look, and a queue of that length in time.
func (b *budget) next(now time.Time, arrived float64, queue time.Duration) float64 {
	both := (arrived + b.before) / 2
	b.before = arrived
	if b.arrives += smooth * (arrived - b.arrives); both > 2*b.arrives {
		b.arrives = both // it has just begun
	}
	if queue > longQueue {
		b.long++
	} else {
		b.long = 0
	}
	if b.rate == 0 {
		if b.long < 2 || now.Before(b.until) {
			return 0
		}
		b.capacity, b.long = max(both, b.arrives), 0 // rather too much, which a queue corrects at once
		b.rate = firstCut * b.capacity
		return b.rate
	}
	queued := queue > shortQueue
	if b.stands++; !queued {
		b.stands = 0
		b.capacity *= 1 - forgets
	}
	b.capacity = max(b.arrives, b.capacity)
	full := b.arrives > busy*b.capacity
	ours := queued && b.rate > makes*b.capacity
	if ours {
		b.queued = now
	}
	if ours || b.long > slower {
		b.capacity += learns * (b.arrives - b.capacity) // a link with a queue carries all that it can
	}
	if b.long >= inVain || b.stands >= 2*inVain {
		*b = budget{until: now.Add(holdOff)}
		return 0
	}
	most := rests * b.capacity
	if now.Sub(b.queued) > tries {
		most = beyond * b.capacity
	}
	off := max(float64(shortQueue-queue)/float64(shortQueue), steepest)
	if off < 0 && full || off > 0 && b.arrives > b.rate/2 { // else the bound makes no difference
		step := gain * off * b.capacity
		if off > 0 && b.rate < rests*b.capacity {
			step *= regains
		}
		b.rate += step
	}
	b.rate = min(max(b.rate, least*b.capacity), most)
	if off < 0 && !full {
		return b.rate
	}
	return b.rate * (1 + lean*min(off, 0))
}
