package process

import (
	"context"
	"errors"
	"sync"
	"time"

	"wrenn/impl/internal/shortcut"
)

// queueLen is how many events wait for one reader (256 as the product's streams have it everywhere;
// with reads of at most 32 KiB that is 8 MiB).
const queueLen = 256

// ErrTooSlow says that a reader was cut off.
var ErrTooSlow = errors.New("reader too slow: its queue was full and it took nothing for too long; attach again")

// Kind tells what an Event carries.
type Kind int

// The kinds of an Event.
const (
	Stdout Kind = iota
	Stderr
	Terminal
	End
)

// Event is a piece of output, or the end.
type Event struct {
	Kind Kind
	Data []byte // shared between readers, never changed
	Exit Exit   // set for End
}

// Exit is how a process ended.
type Exit struct {
	Code   int    // -1 when a signal ended it
	Exited bool   // it ended by itself
	Status string // "exit status 3", "signal: killed"
}

// Subscription is one reader's view of a process from the moment of subscribing. Its owner ranges over
// Events, asks Err when they are over, and calls Close in any case.
type Subscription struct {
	// Replay is terminal output from before the subscription, at most ringSize bytes.
	Replay []byte

	events chan Event
	gone   chan struct{}
	once   sync.Once
	cut    chan struct{}
	from   *fanout
	path   shortcut.Path[Event]
}

// Events yields output and, last, End; it is closed after End or when the reader was cut off.
func (s *Subscription) Events() <-chan Event { return s.events }

// Cut is closed when the reader was cut off for being too slow; what was queued before is still there.
func (s *Subscription) Cut() <-chan struct{} { return s.cut }

// Err says, once Events is closed, why: nil after End, ErrTooSlow for a reader that was cut off.
func (s *Subscription) Err() error {
	select {
	case <-s.cut:
		return ErrTooSlow
	default:
		return nil
	}
}

// Close ends the subscription. It may be called at any time and more than once, but for its path's own send.
func (s *Subscription) Close() {
	s.path.Close()
	s.once.Do(func() { close(s.gone) })
	s.from.drop(s)
}

// fanout hands each event to every subscription, in one order for all.
//
// A full queue is waited for, so that a program that writes faster than its reader reads (tar over a
// slow link) is slowed and not cut short; but only while the reader takes at least one event per
// patience. One that does not is cut off: it can hold the program up once, by patience, and no more.
type fanout struct {
	patience time.Duration

	mu     sync.Mutex
	subs   map[*Subscription]struct{}
	ring   *ring // nil without a terminal
	ending *Event
}

func newFanout(patience time.Duration, r *ring) *fanout {
	return &fanout{patience: patience, subs: map[*Subscription]struct{}{}, ring: r}
}

func (f *fanout) subscribe() *Subscription {
	s := &Subscription{events: make(chan Event, queueLen), gone: make(chan struct{}), cut: make(chan struct{}), from: f}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ring != nil {
		s.Replay = f.ring.bytes()
	}
	if f.ending != nil {
		s.events <- *f.ending
		close(s.events)
		return s
	}
	f.subs[s] = struct{}{}
	return s
}

func (f *fanout) drop(s *Subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.subs, s)
}

// publish hands ev to every reader and remembers it where the process has a terminal.
func (f *fanout) publish(ev Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ring != nil {
		f.ring.add(ev.Data)
	}
	f.send(ev)
}

// finish publishes End and closes every subscription.
func (f *fanout) finish(exit Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ev := Event{Kind: End, Exit: exit}
	f.ending = &ev
	f.send(ev)
	for s := range f.subs {
		close(s.events)
		delete(f.subs, s)
	}
}

// send is called with mu held. Readers with room get ev before any other is waited for, and all those
// share one wait, so several stalled ones cost no more than one.
func (f *fanout) send(ev Event) {
	var full []*Subscription
	for s := range f.subs {
		if s.path.Past(ev, len(ev.Data)) {
			continue
		}
		s.path.Queue()
		select {
		case s.events <- ev:
		default:
			full = append(full, s)
		}
	}
	if full == nil {
		return
	}
	wait, cancel := context.WithTimeout(context.Background(), f.patience)
	defer cancel()
	for _, s := range full {
		select {
		case s.events <- ev:
		case <-s.gone:
			delete(f.subs, s)
		case <-wait.Done():
			// An earlier one may have used the wait up while this one made room.
			select {
			case s.events <- ev:
				continue
			default:
			}
			close(s.cut)
			close(s.events)
			delete(f.subs, s)
		}
	}
}
