// Package nameserver is a sandbox's forwarder of DNS questions. It answers for the names that the
// sandbox's policy allows and for no other, and tells the addresses that it learned before the guest
// sees them, so that they are open when the guest connects.
//
// What comes from a guest is parsed and asked anew, and what comes from an upstream is parsed and
// answered anew: neither side's bytes reach the other. All that a guest can make it do is bounded in
// count, size and time.
package nameserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxQueries is how many queries by UDP are answered at a time; those beyond are dropped, and their
	// resolvers repeat them. A browser that opens a page asks for some 30 names at once.
	maxQueries = 64
	// maxStreams is how many TCP connections are served at a time; those beyond are closed at once.
	maxStreams = 16
	// idleTimeout is how long a TCP connection may be silent, RFC 7766 section 6.2.3.
	idleTimeout = 10 * time.Second
	// acceptPause is the wait after a failed accept, for instance for want of file descriptors.
	acceptPause = 50 * time.Millisecond
)

// Config is what a Server is made of. All fields are required, Upstreams may be empty.
type Config struct {
	// Packets and Streams are what guests ask by; the server closes them.
	Packets net.PacketConn
	Streams net.Listener
	// Upstreams are asked in order, from the network namespace of the process.
	Upstreams []netip.AddrPort
	// Allowed says whether a name, with the dot at its end, may be asked for.
	Allowed func(name string) bool
	// Learn is called with what a name resolves to before the answer is passed on. On an error the guest
	// is told that the server failed.
	Learn func(name string, found []Address) error
	// Ceiling is the longest time to live that a guest is told.
	Ceiling time.Duration
	Logger  *slog.Logger
}

// Server answers one guest's questions until it is closed.
type Server struct {
	cfg     Config
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	queries chan struct{}
	streams chan struct{}
	// ask is replaced by tests.
	ask func(ctx context.Context, upstreams []netip.AddrPort, q query) ([]byte, uint16, error)
}

// Serve starts a server.
func Serve(cfg Config) *Server {
	s := newServer(cfg)
	s.running.Go(s.servePackets)
	s.running.Go(s.serveStreams)
	return s
}

func newServer(cfg Config) *Server {
	s := &Server{cfg: cfg, queries: make(chan struct{}, maxQueries), streams: make(chan struct{}, maxStreams), ask: ask}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends the server, queries under way included, and returns when nothing of it runs. It may be
// called more than once.
func (s *Server) Close() error {
	s.cancel()
	err := errors.Join(s.cfg.Packets.Close(), s.cfg.Streams.Close())
	s.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) servePackets() {
	buf := make([]byte, maxQuery)
	for {
		n, from, err := s.cfg.Packets.ReadFrom(buf)
		if s.ctx.Err() != nil {
			return
		}
		if err != nil {
			s.pause()
			continue
		}
		select {
		case s.queries <- struct{}{}:
		default:
			continue
		}
		msg := append([]byte(nil), buf[:n]...)
		s.running.Go(func() {
			defer func() { <-s.queries }()
			if answer := s.answer(msg, false); answer != nil {
				_, _ = s.cfg.Packets.WriteTo(answer, from) // a guest that has gone asks no more
			}
		})
	}
}

func (s *Server) serveStreams() {
	for {
		conn, err := s.cfg.Streams.Accept()
		if s.ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		if err != nil {
			s.pause()
			continue
		}
		select {
		case s.streams <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		s.running.Go(func() {
			defer func() { <-s.streams }()
			s.serveStream(conn)
		})
	}
}

func (s *Server) serveStream(conn net.Conn) {
	defer conn.Close()                                            //nolint:errcheck // nothing is left to be written
	defer context.AfterFunc(s.ctx, func() { _ = conn.Close() })() // ends the read
	for {
		if conn.SetDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		msg, err := readFrame(conn, maxQuery)
		if err != nil {
			return
		}
		answer := s.answer(msg, true)
		if answer == nil || writeFrame(conn, answer) != nil {
			return
		}
	}
}

func (s *Server) pause() {
	select {
	case <-s.ctx.Done():
	case <-time.After(acceptPause):
	}
}

// answer returns the answer to a message, or nil where there is none to give.
func (s *Server) answer(msg []byte, stream bool) []byte {
	q, code, ok := readQuery(msg)
	if !ok {
		return nil
	}
	size := q.size
	if stream {
		size = maxMessage
	}
	packed, err := pack(s.resolve(q, code), size)
	if err != nil {
		if packed, err = pack(q.answer(dnsmessage.RCodeServerFailure), size); err != nil {
			return nil
		}
	}
	return packed
}

func (s *Server) resolve(q query, code dnsmessage.RCode) dnsmessage.Message {
	name := q.question.Name.String()
	switch {
	case code != dnsmessage.RCodeSuccess:
		return q.answer(code)
	case !s.cfg.Allowed(name):
		return q.refusal()
	case q.withoutAddress():
		return q.answer(dnsmessage.RCodeSuccess)
	}
	ctx, cancel := context.WithTimeout(s.ctx, queryTimeout)
	defer cancel()
	upstream, id, err := s.ask(ctx, s.cfg.Upstreams, q)
	if err != nil {
		s.cfg.Logger.Debug("a name could not be resolved", "name", name, "error", err)
		return q.answer(dnsmessage.RCodeServerFailure)
	}
	out, found, err := relay(q, id, upstream, s.cfg.Ceiling)
	if err == nil && len(found) > 0 {
		err = s.cfg.Learn(name, found)
	}
	if err != nil {
		s.cfg.Logger.Debug("an answer could not be passed on", "name", name, "error", err)
		return q.answer(dnsmessage.RCodeServerFailure)
	}
	return out
}
