// Package echo measures how long a keystroke takes to come back from a terminal.
package echo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Config says how to type.
type Config struct {
	// Interval is the pause between two keystrokes. They come at this pace whether or not earlier ones have
	// come back, as a person's do: waiting for each would count a stall of a second as one slow key, when it
	// has kept hundreds waiting.
	Interval time.Duration
	// Limit is how long one echo is waited for, after which the terminal counts as blocked.
	Limit time.Duration
}

// Typist types on one terminal. Press, Finish, Forget and Close belong to one goroutine.
//
// Keys that are typed while the terminal takes earlier ones are sent together, as terminals' user interfaces do.
type Typist struct {
	cfg      Config
	terminal io.ReadWriteCloser
	due      time.Time
	work     chan struct{} // has an element when pending has keys
	done     chan struct{}

	mu      sync.Mutex
	pending []byte          // typed and not yet sent
	typed   []time.Time     // when each key was, in order
	took    []time.Duration // of those that have come back, in order
	broken  error
	changed chan struct{} // closed and replaced when took or broken changes
}

// ErrBlocked is the error for an echo that did not come within the limit.
var ErrBlocked = errors.New("the echo did not come")

// ready is what a terminal prints once it echoes.
const ready = "ready"

// NewTypist waits until the terminal is ready, limit at most. The terminal is the Typist's from then on.
func NewTypist(terminal io.ReadWriteCloser, cfg Config) (*Typist, error) {
	t := &Typist{
		cfg: cfg, terminal: terminal,
		work: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{}),
	}
	prompt := make(chan struct{})
	go t.read(prompt)
	go t.write()
	limit := time.NewTimer(cfg.Limit)
	defer limit.Stop()
	for {
		t.mu.Lock()
		changed, broken := t.changed, t.broken
		t.mu.Unlock()
		if broken != nil {
			t.Close()
			return nil, fmt.Errorf("wait for a terminal: %w", broken)
		}
		select {
		case <-prompt:
			return t, nil
		case <-changed:
		case <-limit.C:
			t.Close()
			return nil, fmt.Errorf("wait for a terminal: %w", ErrBlocked)
		}
	}
}

// read closes prompt when it has come and then notes when each key came back.
func (t *Typist) read(prompt chan<- struct{}) {
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := t.terminal.Read(buf)
		at := time.Now()
		got := buf[:n]
		if prompt != nil {
			seen = append(seen, got...)
			_, rest, ok := bytes.Cut(seen, []byte(ready))
			got = rest
			if ok {
				close(prompt)
				prompt = nil
			}
		}
		err = errors.Join(t.came(got, at), err)
		if err != nil {
			t.fail(fmt.Errorf("read the echo: %w", err))
			return
		}
	}
}

// came notes keys that came back.
func (t *Typist) came(keys []byte, at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, got := range keys {
		if got < 'a' || got > 'z' {
			continue // the prompt's end
		}
		n := len(t.took)
		if n >= len(t.typed) || got != key(n) {
			return fmt.Errorf("key %d came back as %q", n, got)
		}
		t.took = append(t.took, at.Sub(t.typed[n]))
	}
	t.tell()
	return nil
}

func key(n int) byte { return 'a' + byte(n%26) }

// tell is called with mu held.
func (t *Typist) tell() {
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *Typist) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken == nil {
		t.broken = err
	}
	t.tell()
}

func (t *Typist) write() {
	for {
		select {
		case <-t.work:
		case <-t.done:
			return
		}
		t.mu.Lock()
		keys := t.pending
		t.pending = nil
		t.mu.Unlock()
		if _, err := t.terminal.Write(keys); err != nil {
			t.fail(fmt.Errorf("type: %w", err))
			return
		}
	}
}

// Press types the next key when it is due. Its error is that of an earlier key.
func (t *Typist) Press() error {
	now := time.Now()
	if wait := t.due.Sub(now); wait > 0 {
		time.Sleep(wait)
		now = time.Now() // what the timer was late is not the terminal's
	}
	// After a pause of this process the pace goes on from here.
	t.due = now.Add(t.cfg.Interval)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.check(now); err != nil {
		return err
	}
	t.pending = append(t.pending, key(len(t.typed)))
	t.typed = append(t.typed, now)
	select {
	case t.work <- struct{}{}:
	default:
	}
	return nil
}

// SetLimit changes how long one echo is waited for.
func (t *Typist) SetLimit(limit time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cfg.Limit = limit
}

// check is called with mu held.
func (t *Typist) check(now time.Time) error {
	if t.broken != nil {
		return t.broken
	}
	if n := len(t.took); n < len(t.typed) && now.Sub(t.typed[n]) >= t.cfg.Limit {
		return ErrBlocked
	}
	return nil
}

// Finish waits until all keys have come back.
func (t *Typist) Finish() error {
	for {
		t.mu.Lock()
		changed, outstanding, limit := t.changed, len(t.typed)-len(t.took), t.cfg.Limit
		err := t.check(time.Now())
		t.mu.Unlock()
		if err != nil || outstanding == 0 {
			return err
		}
		select {
		case <-changed:
		case <-time.After(limit / 50):
		}
	}
}

// Samples are the times of all keys since Forget, in order. One that has not come back counts as long as it
// has been waited for.
func (t *Typist) Samples() []time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(t.took)
	now := time.Now()
	for _, at := range t.typed[len(all):] {
		all = append(all, now.Sub(at))
	}
	return all
}

// Forget drops all samples; all keys must have come back. The keys start from the first one again.
func (t *Typist) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.typed, t.took = nil, nil
}

// Close closes the terminal.
func (t *Typist) Close() {
	close(t.done)
	_ = t.terminal.Close() // it may be broken, which is what was measured
}

// Quantile is the q-th quantile (0 to 1) of samples: the smallest one that at least q of all do not exceed.
// It is 0 without samples.
func Quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}
