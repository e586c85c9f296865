package transport

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// inUse is for how long after the last key a client's terminal counts.
	inUse = 10 * time.Minute
	// looks is at how many of a client's terminals is looked each second for keys, and each time at how many of its
	// other connections that were quiet. Those that carry something are all looked at.
	looks = 32
	// atRest is for how long a quiet connection has carried no byte.
	atRest = time.Second
	// backlog is how many packets of a connection whose round trips count are on their way, unless more wait for them
	// to arrive: of answers now and then the last packet is acknowledged late, with the next request.
	backlog = 4
	// levelFloor is the least that a connection is held back to, in bytes per second.
	levelFloor = 64 << 10
)

// Pacer holds back what clients are sent in bulk while a terminal of theirs is in use and the queue before the slowest
// link on the way is long. Connections of their own do not keep a terminal from waiting there: without bands, which most
// links do not have, it waits behind what all others have sent, some 50 to 100 ms. The bulk of one client shares evenly
// what is left to it, by the kernel's pacing, whose rate follows the round trips of the very connections that fill the
// queue. A client is an address. One without a terminal in use is never held back.
type Pacer struct {
	mu      sync.Mutex
	clients map[netip.Addr]*client
}

// NewPacer returns a Pacer that does nothing until it is Run.
func NewPacer() *Pacer { return &Pacer{clients: map[netip.Addr]*client{}} }

// Run does its work until ctx ends.
func (p *Pacer) Run(ctx context.Context) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			p.look(now)
		}
	}
}

func (p *Pacer) look(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.look(now)
	}
}

// watch enters a connection; the returned function takes it out.
func (p *Pacer) watch(s *served) (forget func()) {
	if p == nil {
		return func() {}
	}
	from, ok := s.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return func() {}
	}
	addr := from.AddrPort().Addr().Unmap()
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[addr]
	if c == nil {
		c = &client{conns: map[*served]*meter{}}
		p.clients[addr] = c
	}
	c.conns[s] = &meter{}
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(c.conns, s); len(c.conns) == 0 && p.clients[addr] == c {
			delete(p.clients, addr)
		}
	})
}

// client is all the connections from one address.
type client struct {
	conns  map[*served]*meter
	typed  time.Time // when a key last came
	asked  time.Time // when that was last asked
	budget budget
}

// meter is what is known of a connection.
type meter struct {
	seen  time.Time     // the last look
	acked uint64        // bytes, by then
	full  uint64        // for how long its receiver had had no room by then, in µs
	moved time.Time     // the last look at which more was acknowledged than before
	got   float64       // bytes per second since the look before
	rate  float64       // the same over some looks, since acknowledgements come in bunches
	rtt   time.Duration // smoothed by the kernel
	min   time.Duration // the least round trip of the last five minutes
	tells bool          // its round trips tell how long packets wait on the way
	level float64       // what it is held back to, in bytes per second; 0 is not at all
}

// look looks at the client's connections, and holds bulk back or lets it go.
func (c *client) look(now time.Time) {
	if now.Sub(c.asked) >= time.Second {
		c.asked = now
		c.ask(now)
	}
	if now.Sub(c.typed) > inUse {
		c.budget = budget{}
		c.release()
		return
	}
	bulk := c.bulk(now)
	if len(bulk) == 0 {
		return
	}
	arrived, queue := c.measure(bulk)
	rate := c.budget.next(now, arrived, queue)
	if rate == 0 {
		c.release()
		return
	}
	level := c.level(bulk, rate)
	for _, s := range bulk {
		c.conns[s].holdBack(s, level)
	}
}

// ask finds out when a key last came; where no terminal is left, none has.
func (c *client) ask(now time.Time) {
	left := looks
	for s, m := range c.conns {
		if left == 0 {
			return
		}
		if !s.marked.Load() {
			continue
		}
		left--
		if info := tcpInfo(s.TCPConn); info != nil {
			m.note(info, now)
			if at := now.Add(-time.Duration(info.Last_data_recv) * time.Millisecond); at.After(c.typed) {
				c.typed = at
			}
		}
	}
	if left == looks {
		c.typed = time.Time{}
	}
}

// bulk looks at the connections that are no terminals, and returns those that carry something.
func (c *client) bulk(now time.Time) (bulk []*served) {
	left := looks
	for s, m := range c.conns {
		if s.marked.Load() {
			m.holdBack(s, 0)
			continue
		}
		if now.Sub(m.moved) > atRest {
			if left == 0 {
				continue
			}
			left--
		}
		if info := tcpInfo(s.TCPConn); info != nil {
			m.note(info, now)
			if now.Sub(m.moved) <= atRest {
				bulk = append(bulk, s)
			}
		}
	}
	return bulk
}

// measure says what arrived per second of the bulk, and how long its packets wait on the way: the mean round trip, by
// bytes, beyond the least that any of the client's connections has seen.
func (c *client) measure(bulk []*served) (arrived float64, queue time.Duration) {
	base := time.Duration(0)
	for _, m := range c.conns {
		if m.min > 0 && (base == 0 || m.min < base) {
			base = m.min
		}
	}
	var waits, weight float64
	for _, s := range bulk {
		m := c.conns[s]
		arrived += m.got
		if m.tells {
			weight += m.got
			waits += m.got * float64(m.rtt-base)
		}
	}
	if weight > 0 {
		queue = time.Duration(waits / weight)
	}
	return arrived, queue
}

// level is what each connection may send so that all of them send rate, where those that want less leave the others
// theirs.
func (c *client) level(bulk []*served, rate float64) float64 {
	wants := make([]float64, 0, len(bulk))
	for _, s := range bulk {
		m := c.conns[s]
		want := rate
		if m.level > 0 && m.rate < 0.7*m.level {
			want = min(rate, 1.5*m.rate)
		}
		wants = append(wants, want)
	}
	slices.Sort(wants)
	for i, want := range wants {
		share := rate / float64(len(wants)-i)
		if want >= share {
			return max(share, levelFloor)
		}
		rate -= want
	}
	return max(wants[len(wants)-1], levelFloor) // they want less together than there is
}

// release lets all go that is held back.
func (c *client) release() {
	for s, m := range c.conns {
		m.holdBack(s, 0)
	}
}

func (m *meter) note(info *unix.TCPInfo, now time.Time) {
	since := now.Sub(m.seen)
	first := m.seen.IsZero() // what it has carried so far was in no time that is known
	m.got = 0
	if !first && since > 0 && info.Bytes_acked != m.acked {
		m.moved = now
		m.got = float64(info.Bytes_acked-m.acked) / since.Seconds()
	}
	m.rate += (m.got - m.rate) / 8
	full := time.Duration(info.Rwnd_limited-m.full) * time.Microsecond
	m.tells = (info.Notsent_bytes > 0 || info.Unacked >= backlog) && full < since/10
	m.seen, m.acked, m.full = now, info.Bytes_acked, info.Rwnd_limited
	m.rtt, m.min = time.Duration(info.Rtt)*time.Microsecond, 0
	if info.Min_rtt != ^uint32(0) {
		m.min = time.Duration(info.Min_rtt) * time.Microsecond
	}
}

// unbound is the kernel's word for no limit of the pacing rate.
const unbound = 1<<32 - 1

// holdBack bounds what the connection sends, in bytes per second; 0 is no bound. A change of less than a twentieth is
// none. A connection that cannot be bound only waits for nobody.
func (m *meter) holdBack(s *served, level float64) {
	if d := level - m.level; level == m.level || level > 0 && m.level > 0 && d < m.level/20 && -d < m.level/20 {
		return
	}
	m.level = level
	rate := unbound
	if level > 0 {
		rate = min(int(level), unbound-1)
	}
	s.piece.Store(pieceOf(level))
	setOn(s.TCPConn, []option{{unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate}})
}

// tcpInfo is nil for a connection that is closed.
func tcpInfo(c *net.TCPConn) (info *unix.TCPInfo) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info
}
