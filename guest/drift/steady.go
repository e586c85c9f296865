package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// files is a log that grows by a numbered line each beat, and is kept whole by fsync now and then.
type files struct {
	path string
	talk
}

func newFiles(dir string) (*files, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f := &files{path: filepath.Join(dir, "log")}
	log, err := os.Create(f.path)
	if err != nil {
		return nil, err
	}
	go f.grow(log)
	return f, nil
}

func (f *files) grow(log *os.File) {
	for n := int64(1); ; n++ {
		f.mu.Lock()
		_, err := fmt.Fprintf(log, "line %d\n", n)
		if err == nil && n%50 == 0 {
			err = log.Sync()
		}
		f.moves, f.wrong = n, err
		f.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(beat)
	}
}

func (f *files) check() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wrong != nil {
		return f.moves, f.wrong
	}
	log, err := os.Open(f.path)
	if err != nil {
		return f.moves, err
	}
	defer log.Close()
	n := int64(0)
	for lines := bufio.NewScanner(log); lines.Scan(); {
		n++
		if want := fmt.Sprintf("line %d", n); lines.Text() != want {
			return f.moves, fmt.Errorf("%q stands for %q", lines.Text(), want)
		}
	}
	if n != f.moves {
		return f.moves, fmt.Errorf("%d lines of %d are there", n, f.moves)
	}
	return f.moves, nil
}

// timers watches a ticker and a chain of timers by the monotonic clock.
type timers struct {
	mu    sync.Mutex
	ticks int64
	last  time.Time
	wrong error
}

// Bounds of what a busy, emulated machine does by itself. A clock that jumped by the time of a pause would
// pass the first, and a timer that was lost the second.
const (
	tick    = 50 * time.Millisecond
	maxJump = 20 * time.Second
)

func newTimers() *timers {
	t := &timers{last: time.Now()}
	go func() {
		for range time.Tick(tick) {
			t.mu.Lock()
			now := time.Now() // the tick's own time is when it was due, or a moment after
			gap := now.Sub(t.last)
			if gap < 0 || gap > maxJump {
				t.wrong = errors.Join(t.wrong, fmt.Errorf("%v passed between two ticks", gap))
			}
			t.ticks++
			t.last = now
			t.mu.Unlock()
		}
	}()
	return t
}

func (t *timers) check() (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if silent := time.Since(t.last); silent > maxJump {
		return t.ticks, fmt.Errorf("no tick for %v", silent)
	}
	return t.ticks, t.wrong
}
