package main

import (
	"os"
	"time"
)

// connectFrames carries frames between the guest's card and the TAP until the process ends, within the
// limits of the interface.
func connectFrames(card, tap *os.File, n *nic) {
	now := time.Now()
	carry(card, tap, newBucket(n.TxRateLimiter, now))
	carry(tap, card, newBucket(n.RxRateLimiter, now))
}

// leastWait is how long a limit waits at once: a timer for each of a hundred thousand frames a second would take most of
// a processor from what is measured. What has gone too early is waited for later.
const leastWait = time.Millisecond

// carry goes on in the background. Where there is a limit, what waits for it stands in bands, as it does with
// firecracker-qemu.
func carry(from, to *os.File, limit *bucket) {
	if limit == nil {
		go copyFrames(from, func(frame []byte) { _, _ = to.Write(frame) })
		return
	}
	// A frame for a card that is down or busy is lost, as on a wire.
	write := func(frame []byte) { _, _ = to.Write(frame) }
	q := newBands(int(max(queueTime.Seconds()*limit.perSecond, minQueue)))
	// Nobody uses the limit while the queue is idle or what was taken rests.
	q.pass = func(frame []byte, held int) bool {
		now := time.Now()
		if limit.wait(int64(held), now) >= leastWait {
			return false
		}
		limit.take(int64(len(frame)), now)
		write(frame)
		return true
	}
	go func() {
		copyFrames(from, q.put)
		q.close()
	}()
	go func() {
		frame := make([]byte, maxFrame)
		for n := q.take(frame); n > 0; n = q.take(frame) {
			if wait := limit.take(int64(n), time.Now()); wait >= leastWait {
				q.rest(wait)
			}
			write(frame[:n])
		}
	}()
}

// copyFrames hands over each frame until the link is gone, and with it the guest's network.
func copyFrames(from *os.File, hand func(frame []byte)) {
	frame := make([]byte, maxFrame)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		hand(frame[:n])
	}
}

// bucket limits one direction of the wire. A nil one does not limit.
type bucket struct {
	size, left, once float64 // bytes
	perSecond        float64
	at               time.Time
}

func newBucket(l *limiter, now time.Time) *bucket {
	if l == nil || l.Bandwidth == nil || l.Bandwidth.Size <= 0 || l.Bandwidth.RefillTime <= 0 {
		return nil // Firecracker too takes a zero for no limit
	}
	b := l.Bandwidth
	return &bucket{
		size: float64(b.Size), left: float64(b.Size), once: float64(b.OneTimeBurst),
		perSecond: 1000 * float64(b.Size) / float64(b.RefillTime), at: now,
	}
}

// take spends n bytes at now and returns how long their frame must wait.
func (b *bucket) take(n int64, now time.Time) time.Duration {
	if b == nil {
		return 0
	}
	b.fill(now)
	spend := float64(n)
	extra := min(spend, b.once)
	b.once -= extra
	b.left -= spend - extra
	return b.wait(0, now)
}

// wait is how long a frame must wait at now that goes ahead of held bytes, which were spent already.
func (b *bucket) wait(held int64, now time.Time) time.Duration {
	b.fill(now)
	return time.Duration(max(0, -b.left-float64(held)) / b.perSecond * float64(time.Second))
}

func (b *bucket) fill(now time.Time) {
	b.left = min(b.size, b.left+now.Sub(b.at).Seconds()*b.perSecond)
	b.at = now
}
