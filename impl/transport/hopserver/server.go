// Package hopserver serves HTTP/1.1 to the handler of a proxy's hop. It does for a request what net/http's server does, with
// that package's own parser, in one goroutine and without a timer: net/http has a second goroutine read from the connection
// during every request, to notice that the client has gone, and sets three deadlines, which together cost as much as the
// request itself. Here one look over all connections, several times a second, does that for those that take long.
//
// Handlers find what they know from net/http, with these differences: an answer may begin before the request's body has been
// read, always; nothing is added to an answer's header but Date, Connection and what frames the body; and a client's end
// shows in the request's context up to a second late.
package hopserver

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves connections. Handler, HeaderTimeout, IdleTimeout, MaxHeaderBytes and ErrorLog are required, and nothing may be
// changed once it serves.
type Server struct {
	Handler http.Handler
	// HeaderTimeout is how long a request's header may take from its first byte, or a new connection to bring one, and
	// IdleTimeout how long a connection may rest between two requests. Both are kept to within two looks (lookEvery).
	HeaderTimeout, IdleTimeout time.Duration
	// MaxHeaderBytes bounds a request's line and header together.
	MaxHeaderBytes int
	// BaseContext is what requests' contexts come from; nil means the background.
	BaseContext context.Context //nolint:containedctx // as net/http's server has it
	// ConnContext makes a connection's context, which its requests' come from; may be nil.
	ConnContext func(context.Context, net.Conn) context.Context
	// ErrorLog is told of panics, and of connections that could not be accepted.
	ErrorLog *log.Logger

	mu        sync.Mutex
	ended     bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	look      *time.Timer  // set while there are connections
	looks     atomic.Int64 // how many there have been: the connections' clock
}

// lookEvery is how often all connections are looked at. A look at a thousand takes some 10 µs.
const lookEvery = 250 * time.Millisecond

// acceptPause is waited when a connection cannot be accepted, mostly for want of descriptors.
const acceptPause = 50 * time.Millisecond

// Serve serves l's connections, each in a goroutine of its own, until the server ends (http.ErrServerClosed) or l fails.
func (s *Server) Serve(l net.Listener) error {
	if !s.listen(l) {
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	for {
		rwc, err := l.Accept()
		switch {
		case err == nil:
			if c := s.add(rwc); c != nil {
				go c.serve()
			}
		case s.hasEnded():
			return http.ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			s.ErrorLog.Printf("accept a connection: %v; the next in %v", err, acceptPause)
			time.Sleep(acceptPause)
		}
	}
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	if s.listeners == nil {
		s.listeners, s.conns = map[net.Listener]struct{}{}, map[*conn]struct{}{}
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) hasEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// add makes a connection of rwc, or closes it where the server has ended.
func (s *Server) add(rwc net.Conn) *conn {
	c := newConn(s, rwc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		c.cut()
		return nil
	}
	s.conns[c] = struct{}{}
	if s.look == nil {
		s.look = time.AfterFunc(lookEvery, s.lookAtAll)
	}
	return c
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// lookAtAll ends connections that have rested or dallied for too long, and has others watched. It comes again while there are any.
func (s *Server) lookAtAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.looks.Add(1)
	for c := range s.conns {
		c.look(now)
	}
	s.look = nil
	if len(s.conns) > 0 {
		s.look = time.AfterFunc(lookEvery, s.lookAtAll)
	}
}

// Close ends the server and its connections at once, but for those that were taken over by their handlers. Handlers see their
// requests' contexts end.
func (s *Server) Close() error {
	err := s.stopListening()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.cut()
	}
	return err
}

// shutdownPoll is how often Shutdown looks whether the last exchange has ended.
const shutdownPoll = 10 * time.Millisecond

// Shutdown ends the server, and each connection with the exchange that is under way on it. It returns when the last one has
// ended, or with ctx's error when ctx ends first.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.stopListening()
	for {
		if s.endIdle() == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(shutdownPoll):
		}
	}
}

// endIdle closes connections on which no request has begun and returns how many are left.
func (s *Server) endIdle() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.endIdle()
	}
	return len(s.conns)
}

func (s *Server) stopListening() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	var errs []error
	for l := range s.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.listeners = nil
	return errors.Join(errs...)
}
