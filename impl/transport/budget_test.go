package transport

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// link is a bottleneck with a plain queue, looked at as a Pacer does: round trips come smoothed, and acknowledgements in
// bunches.
type link struct {
	random   *rand.Rand
	capacity float64 // bytes per second
	holds    float64 // bytes that fit into the queue
	queued   float64
	smoothed time.Duration
	now      time.Time
	b        budget
	rate     float64 // what may be sent
	waits    []time.Duration
	carried  float64
	unseen   float64 // of carried, what is acknowledged later
	even     bool    // acknowledgements come at once
	jitter   time.Duration
}

func newLink(capacity float64) *link {
	return &link{random: rand.New(rand.NewPCG(1, 2)), capacity: capacity, holds: capacity / 20, now: time.Unix(1000, 0)}
}

// run sends so many bytes per second, as far as is allowed, beside others that do not care.
func (l *link) run(d time.Duration, demand, others float64) {
	l.waits, l.carried = nil, 0
	for range d / pace {
		l.now = l.now.Add(pace)
		dt := pace.Seconds()
		sends := demand
		if l.rate > 0 {
			sends = min(sends, l.rate)
		}
		in := (sends + others) * dt
		l.queued += in
		out := min(l.queued, l.capacity*dt)
		l.queued = min(l.queued-out, l.holds)
		ours := 0.0
		if in > 0 {
			ours = min(out*sends/(sends+others), out)
		}
		wait := time.Duration(l.queued / l.capacity * float64(time.Second))
		l.waits = append(l.waits, wait)
		l.carried += ours
		l.smoothed += (wait - l.smoothed) / 3
		l.unseen += ours
		seen := l.unseen * (0.6 + 0.4*l.random.Float64())
		if l.even {
			seen = l.unseen
		}
		l.unseen -= seen
		l.rate = l.b.next(l.now, seen/dt, l.smoothed+l.jitter)
	}
}

// long is the part of the looks at which the queue was longer than is acted upon.
func (l *link) long() float64 {
	n := 0
	for _, w := range l.waits {
		if w > longQueue {
			n++
		}
	}
	return float64(n) / float64(len(l.waits))
}

// idle is the part of the looks at which nothing waits.
func (l *link) idle() float64 {
	n := 0
	for _, w := range l.waits {
		if w < time.Millisecond/10 {
			n++
		}
	}
	return float64(n) / float64(len(l.waits))
}

func (l *link) used(d time.Duration) float64 { return l.carried / (l.capacity * d.Seconds()) }

// TestT07_TheQueueStaysShortAndTheLinkBusy at speeds from a DSL line's to a server's.
func TestT07_TheQueueStaysShortAndTheLinkBusy(t *testing.T) {
	for _, mbit := range []float64{2, 20, 100, 1000, 10000} {
		l := newLink(mbit * 125e3)
		l.run(2*time.Second, 10*l.capacity, 0)
		assert.Less(t, l.long(), 0.6, "%v Mbit/s: the queue that was there drains", mbit)
		l.run(30*time.Second, 10*l.capacity, 0)
		assert.Less(t, l.long(), 0.02, "%v Mbit/s", mbit)
		assert.Greater(t, l.idle(), 0.7, "%v Mbit/s: it makes a queue to see that it is one", mbit)
		assert.Greater(t, l.used(30*time.Second), 0.85, "%v Mbit/s", mbit)

		l.capacity /= 3 // a radio's, from one moment to the next
		l.run(5*time.Second, 10*l.capacity, 0)
		l.run(20*time.Second, 10*l.capacity, 0)
		assert.Less(t, l.long(), 0.05, "%v Mbit/s: slower", mbit)
		l.capacity *= 3
		l.run(20*time.Second, 10*l.capacity, 0)
		l.run(20*time.Second, 10*l.capacity, 0)
		assert.Greater(t, l.used(20*time.Second), 0.75, "%v Mbit/s: as fast as before", mbit)
	}
}

// TestT07_WhoFillsNoQueueIsNotHeldBack, nor who suffers from others' queue for more than a while.
func TestT07_WhoFillsNoQueueIsNotHeldBack(t *testing.T) {
	l := newLink(12.5e6)
	l.run(10*time.Second, 0.9*l.capacity, 0)
	assert.Zero(t, l.rate)
	l.run(60*time.Second, 0.5*l.capacity, 2*l.capacity)
	free := 0
	for range 20 {
		l.run(time.Second, 0.5*l.capacity, 2*l.capacity)
		if l.rate == 0 {
			free++
		}
	}
	assert.Greater(t, free, 10, "seconds of 20 that it is let alone in")
}

// TestT07_ATryEndsWithItsQueue also where nothing comes by chance, and what was there before the first cut is given again
// at once.
func TestT07_ATryEndsWithItsQueue(t *testing.T) {
	l := newLink(12.5e6)
	l.even = true
	l.run(2*time.Second, 10*l.capacity, 0)
	l.run(2*time.Second, 10*l.capacity, 0)
	assert.Greater(t, l.used(2*time.Second), 0.9)
	l.run(60*time.Second, 10*l.capacity, 0)
	assert.Greater(t, l.idle(), 0.85)
	assert.Greater(t, l.used(60*time.Second), 0.9)
}

// TestT07_RoundTripsThatDifferByThemselves are no queue that could be shortened, and cost part of a link.
func TestT07_RoundTripsThatDifferByThemselves(t *testing.T) {
	l := newLink(12.5e6)
	l.run(time.Second, 10*l.capacity, 0) // has made a queue once
	l.jitter = (shortQueue + longQueue) / 2
	for range 10 {
		l.run(time.Minute, 10*l.capacity, 0)
	}
	assert.Greater(t, l.used(time.Minute), 0.6)
}

// TestT07_WhatWasThereIsGivenAgainAtOnce: a deep cut is over in a second, and goes no deeper once what arrives shows that
// the queue has gone, though round trips, which are smoothed, do not yet.
func TestT07_WhatWasThereIsGivenAgainAtOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	b := budget{rate: 0.6 * 12e6, capacity: 12e6, arrives: 0.6 * 12e6, queued: now}
	rate := b.rate
	for range 10 {
		now = now.Add(pace)
		rate = b.next(now, rate, 30*time.Millisecond)
	}
	assert.InEpsilon(t, 0.6*12e6, rate, 0.01)
	for range 20 {
		now = now.Add(pace)
		rate = b.next(now, rate, 0)
	}
	assert.InEpsilon(t, rests*12e6, rate, 0.01)
}
