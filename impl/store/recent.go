package store

import (
	"context"
	"sync"
	"time"
)

// recentLife bounds how old a row of GetRecent may be where another process has written it; this one's own writes
// count at once. A terminal in use then costs one read a second instead of one per key.
const recentLife = time.Second

// recent keeps rows that were read lately. What it holds is never older than the last write through the same
// Store: a write forgets the row before and after, and a read that began before the end of a write keeps nothing.
type recent struct {
	mu     sync.Mutex
	rows   map[string]recentRow
	writes int64 // that have begun or ended
}

type recentRow struct {
	Sandbox
	until time.Time
}

// look returns a row that is kept, or how many writes there have been, for keep.
func (r *recent) look(id string) (sb Sandbox, ok bool, writes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row, ok := r.rows[id]
	if ok && time.Now().Before(row.until) {
		return row.Sandbox, true, r.writes
	}
	delete(r.rows, id)
	return Sandbox{}, false, r.writes
}

// keep keeps a row that was read after there had been that many writes.
func (r *recent) keep(sb Sandbox, writes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writes != writes {
		return
	}
	if r.rows == nil {
		r.rows = map[string]recentRow{}
	}
	r.rows[sb.ID] = recentRow{sb, time.Now().Add(recentLife)}
}

// forget is called when a write to a sandbox's row begins; what it returns, when it has ended.
func (r *recent) forget(id string) (ended func()) {
	f := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.writes++
		delete(r.rows, id)
	}
	f()
	return f
}

// GetRecent is Get for those who ask for one sandbox many times a second: a row that another process has changed
// may be up to a second old, one that this Store has changed is not. The row's map and lists are shared and must
// not be changed.
func (s *Store) GetRecent(ctx context.Context, id string) (Sandbox, error) {
	sb, ok, writes := s.recent.look(id)
	if ok {
		return sb, nil
	}
	sb, err := s.Get(ctx, id)
	if err == nil {
		s.recent.keep(sb, writes)
	}
	return sb, err
}
