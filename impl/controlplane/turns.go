package controlplane

import (
	"context"
	"sync"
)

// turns lets one request at a time change the state of a sandbox, so that what the agent said last is also
// what is written last, and a connect waits for the end of a pause. A kill waits for nobody.
type turns struct {
	mu    sync.Mutex
	taken map[string]*turn
}

type turn struct {
	slot chan struct{} // holds one
	// users have it or wait for it.
	users int
}

// take waits for the sandbox's turn, until ctx ends. done must be called once.
func (t *turns) take(ctx context.Context, id string) (done func(), err error) {
	t.mu.Lock()
	if t.taken == nil {
		t.taken = map[string]*turn{}
	}
	mine := t.taken[id]
	if mine == nil {
		mine = &turn{slot: make(chan struct{}, 1)}
		t.taken[id] = mine
	}
	mine.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.users--; mine.users == 0 {
			delete(t.taken, id)
		}
	}
	select {
	case mine.slot <- struct{}{}:
		return func() { <-mine.slot; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
