package agent

import (
	"net/netip"
	"sync"

	"wrenn/impl/transport"
)

// line is the connection by which a guest was told its settings. It is kept for the guest's freeze: a pause need not
// wait then until the guest has taken a new one: 2 to 3 ms where guests are emulated.
type line struct {
	transport *transport.Direct
	died      <-chan struct{} // closed once the guest's machine has ended
}

func (l line) isDead() bool {
	select {
	case <-l.died:
		return true
	default:
		return false
	}
}

// lines are those of the guests that run, by address. The next guest at an address never meets its predecessor's: a
// line counts for nothing once its machine has ended, and is closed when the next one is kept.
type lines struct {
	mu    sync.Mutex
	lines map[netip.Addr]line
}

// keep puts l in the place of what was kept for addr.
func (ls *lines) keep(addr netip.Addr, l line) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.lines == nil {
		ls.lines = map[netip.Addr]line{}
	}
	for at, former := range ls.lines {
		if at == addr || former.isDead() {
			former.transport.CloseIdleConnections()
			delete(ls.lines, at)
		}
	}
	ls.lines[addr] = l
}

// take returns what is kept for addr, which is the caller's then; nil if there is nothing.
func (ls *lines) take(addr netip.Addr) *transport.Direct {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l, ok := ls.lines[addr]
	delete(ls.lines, addr)
	if ok && l.isDead() {
		l.transport.CloseIdleConnections()
		return nil
	}
	return l.transport
}

// close closes all of them.
func (ls *lines) close() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.lines {
		l.transport.CloseIdleConnections()
	}
	ls.lines = nil
}
