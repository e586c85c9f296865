package network

import (
	"errors"
	"fmt"
	"sync"
)

var (
	// ErrNoFreeSlot is returned by Acquire when every slot is in use.
	ErrNoFreeSlot = errors.New("no free slot")
	// ErrSlotInUse is returned by Claim for a slot that is held already.
	ErrSlotInUse = errors.New("network slot in use")
	// ErrSlotNotHeld is returned by Release for a slot that nobody holds, for instance one that was
	// released before.
	ErrSlotNotHeld = errors.New("network slot not held")
)

// Allocator hands out slots, each operation in constant time. It may be used concurrently.
//
// A released slot goes to the end of the queue of free ones: it rests as long as any other slot is
// free, so that connections, neighbour entries and tracked flows of its last tenant are long gone
// when the next one comes. With all slots in the queue that is hours at one sandbox per second.
type Allocator struct {
	mu    sync.Mutex
	count Slot
	held  int
	// The free slots are a ring, linked through arrays so that Claim can take one out of the middle.
	// Element 0 is its head. A held slot has heldMark as its next.
	next, prev [MaxSlot + 1]Slot
}

// heldMark stands in next for a slot outside the ring.
const heldMark Slot = -1

// NewAllocator returns an allocator of the slots 1..count, all of them free; count is 1 to MaxSlot.
func NewAllocator(count Slot) (*Allocator, error) {
	if err := count.Check(); err != nil {
		return nil, fmt.Errorf("number of slots: %w", err)
	}
	a := &Allocator{count: count}
	for s := range count {
		a.next[s], a.prev[s+1] = s+1, s
	}
	a.prev[0] = count
	return a, nil
}

// Acquire takes the slot that has been free the longest, or returns ErrNoFreeSlot.
func (a *Allocator) Acquire() (Slot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.next[0]
	if s == 0 {
		return 0, fmt.Errorf("%w: all %d are in use", ErrNoFreeSlot, a.count)
	}
	a.take(s)
	return s, nil
}

// Claim takes a certain slot: that of a sandbox that was found alive after a restart. The error wraps
// ErrSlotInUse or ErrInvalidSlot.
func (a *Allocator) Claim(s Slot) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.check(s); err != nil {
		return err
	}
	if a.next[s] == heldMark {
		return fmt.Errorf("%w: %d", ErrSlotInUse, s)
	}
	a.take(s)
	return nil
}

// Release gives a slot back. The error wraps ErrSlotNotHeld or ErrInvalidSlot.
func (a *Allocator) Release(s Slot) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.check(s); err != nil {
		return err
	}
	if a.next[s] != heldMark {
		return fmt.Errorf("%w: %d", ErrSlotNotHeld, s)
	}
	last := a.prev[0]
	a.next[last], a.prev[s] = s, last
	a.next[s], a.prev[0] = 0, s
	a.held--
	return nil
}

// Held is the number of slots in use.
func (a *Allocator) Held() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held
}

func (a *Allocator) take(s Slot) {
	a.next[a.prev[s]], a.prev[a.next[s]] = a.next[s], a.prev[s]
	a.next[s] = heldMark
	a.held++
}

func (a *Allocator) check(s Slot) error {
	if s < 1 || s > a.count {
		return fmt.Errorf("%w: %d is not within 1..%d", ErrInvalidSlot, s, a.count)
	}
	return nil
}
