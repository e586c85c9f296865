// Package echo measures how long a keystroke takes to come back from a terminal.
package echo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Config says how to type.
type Config struct {
	// Interval is the pause between two keystrokes, from one to the next.
	Interval time.Duration
	// Limit is how long one echo is waited for, after which the terminal counts as blocked.
	Limit time.Duration
}

// Typist types on one terminal. It is used by one goroutine.
type Typist struct {
	cfg      Config
	terminal io.ReadWriteCloser
	echoes   chan arrival
	gone     chan error // why reading has ended
	wrote    chan error // results of writes, in order
	keys     chan byte
	stop     context.CancelFunc
	count    int
	next     time.Time
	samples  []time.Duration
}

type arrival struct {
	key byte
	at  time.Time
}

// ErrBlocked is Press's for an echo that did not come within the limit. It ends the Typist's use.
var ErrBlocked = errors.New("the echo did not come")

// ready is what a terminal prints once it echoes.
const ready = "ready"

// NewTypist waits until the terminal is ready, limit at most. It reads and writes the terminal from then on
// and closes it at the end, by Close.
func NewTypist(terminal io.ReadWriteCloser, cfg Config) (*Typist, error) {
	ctx, stop := context.WithCancel(context.Background())
	t := &Typist{
		cfg: cfg, terminal: terminal, stop: stop,
		echoes: make(chan arrival, 64), gone: make(chan error, 1), wrote: make(chan error, 1), keys: make(chan byte),
	}
	prompt := make(chan struct{})
	go t.read(ctx, prompt)
	go t.write(ctx)
	select {
	case <-prompt:
		return t, nil
	case err := <-t.gone:
		t.Close()
		return nil, fmt.Errorf("wait for a terminal: %w", err)
	case <-time.After(cfg.Limit):
		t.Close()
		return nil, fmt.Errorf("wait for a terminal: %w", ErrBlocked)
	}
}

// read notes when each byte came, once it has seen the prompt.
func (t *Typist) read(ctx context.Context, prompt chan<- struct{}) {
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
			} else {
				got = nil
			}
		}
		for _, key := range got {
			if key < 'a' || key > 'z' {
				continue // the prompt's end
			}
			select {
			case t.echoes <- arrival{key, at}:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			t.gone <- err
			return
		}
	}
}

func (t *Typist) write(ctx context.Context) {
	for {
		select {
		case key := <-t.keys:
			_, err := t.terminal.Write([]byte{key})
			t.wrote <- err
		case <-ctx.Done():
			return
		}
	}
}

// Press types the next key and waits for its echo. A key that is late because the one before it took longer
// than the interval counts from when it was due, as its user would: otherwise a stall of a second would be
// one slow key among thousands, when it has kept hundreds waiting.
func (t *Typist) Press() (time.Duration, error) {
	now := time.Now()
	begin := now
	if t.next.IsZero() {
		t.next = now
	}
	if wait := t.next.Sub(now); wait > 0 {
		time.Sleep(wait)
		// What the timer was late is not the terminal's.
		begin = time.Now()
	} else {
		begin = t.next
	}
	t.next = t.next.Add(t.cfg.Interval)
	if behind := begin.Add(-t.cfg.Limit); t.next.Before(behind) {
		t.next = behind
	}
	key := 'a' + byte(t.count%26)
	t.count++
	took, err := t.press(key, begin)
	t.samples = append(t.samples, took)
	return took, err
}

func (t *Typist) press(key byte, begin time.Time) (time.Duration, error) {
	limit := time.NewTimer(t.cfg.Limit)
	defer limit.Stop()
	t.keys <- key // the writer is idle: its last result was taken
	var echoed, written bool
	var took time.Duration
	for !echoed || !written {
		select {
		case got := <-t.echoes:
			if got.key != key {
				return 0, fmt.Errorf("typed %q, got %q", key, got.key)
			}
			echoed, took = true, got.at.Sub(begin)
		case err := <-t.wrote:
			if err != nil {
				return 0, fmt.Errorf("type: %w", err)
			}
			written = true
		case err := <-t.gone:
			return 0, fmt.Errorf("read the echo: %w", err)
		case <-limit.C:
			return t.cfg.Limit, ErrBlocked
		}
	}
	return took, nil
}

// Samples are the times of all keys so far, in order; a blocked one's is the limit.
func (t *Typist) Samples() []time.Duration { return t.samples }

// Forget drops the samples so far, and what is late of them.
func (t *Typist) Forget() { t.samples, t.next = nil, time.Time{} }

// Close closes the terminal.
func (t *Typist) Close() {
	t.stop()
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
