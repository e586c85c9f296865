// Package settings holds what the host tells the daemon at /init: the access token, the default user
// and working directory, and the environment of every process.
package settings

import (
	"crypto/subtle"
	"maps"
	"sync"
	"time"
)

// Settings is safe for concurrent use; its zero value asks for no token and sets nothing.
type Settings struct {
	mu      sync.RWMutex
	stamp   time.Time
	token   string
	user    string
	workdir string
	env     map[string]string
}

// Update is one change. A nil pointer or map leaves its setting as it is.
type Update struct {
	Timestamp time.Time // zero: applied whatever came before
	Token     *string   // empty: no token is asked for from then on
	User      *string
	Workdir   *string
	Env       map[string]string // replaces the former environment
}

// Apply makes the change and reports whether it did: one that is not newer than the last is dropped,
// since a repeated or late call must not undo a newer one.
func (s *Settings) Apply(u Update) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !u.Timestamp.IsZero() {
		if !u.Timestamp.After(s.stamp) {
			return false
		}
		s.stamp = u.Timestamp
	}
	if u.Token != nil {
		s.token = *u.Token
	}
	if u.User != nil {
		s.user = *u.User
	}
	if u.Workdir != nil {
		s.workdir = *u.Workdir
	}
	if u.Env != nil {
		s.env = maps.Clone(u.Env)
	}
	return true
}

// Allows reports whether token opens the daemon: always while none is set. The comparison takes the
// same time wherever the two differ.
func (s *Settings) Allows(token string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.token == "" || subtle.ConstantTimeCompare([]byte(token), []byte(s.token)) == 1
}

// Token is the access token, empty while none is set. It must not be logged.
func (s *Settings) Token() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.token
}

// User is the user of requests that name none, or empty.
func (s *Settings) User() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.user
}

// Workdir is where relative paths and processes without a directory start, or empty for the user's home.
func (s *Settings) Workdir() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.workdir
}

// Env is a copy of the environment that every process gets.
func (s *Settings) Env() map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[string]string, len(s.env))
	maps.Copy(out, s.env)
	return out
}
