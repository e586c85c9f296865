// Package ports makes programs that listen on the guest's loopback reachable from outside: it watches which
// TCP ports are listened on and, for those bound to 127.0.0.1 or ::1 alone, listens on the guest's own
// addresses and passes each connection on.
//
// A program that listens on a wildcard address, or on the guest's address itself, is left alone. There is
// one thing that a forward cannot do: while it holds a port of the guest's address, nobody can bind the
// wildcard address of that port. The kernel refuses that anyway while a program listens on loopback, so it
// matters for the moment between that program's end and the forward's, for which scans are frequent; and whoever
// meets a forward without its program in that moment ends it.
package ports

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// busy and calm are the pauses between two scans: busy while there are forwards or the listeners have
	// changed lately, so that a port that was closed is free again soon; calm otherwise, since each scan
	// wakes a sleeping guest. Both, and slow, are within the second in which a port must be noticed.
	busy = 200 * time.Millisecond
	calm = 500 * time.Millisecond
	// confirm is the pause after a scan that has missed a forward's target: long enough for another moment,
	// short enough for a program that moves its port to another address.
	confirm = 20 * time.Millisecond
	// lately is how long after a change scans stay frequent: a dev server opens its ports one by one.
	lately = 10 * time.Second
	// share bounds what scans cost: the pause is this many times the scan's duration, up to slow. On a real
	// processor a scan takes 0.1 ms; where the guest's is emulated it takes tens, and would eat it up.
	share = 50
	slow  = 800 * time.Millisecond
	// addressesKept is how long the guest's addresses are taken to be the same: asking costs as much as a scan.
	addressesKept = 2 * time.Second
	// maxForwards bounds the forwards, and with them descriptors: more ports are not forwarded.
	maxForwards = 1024
	// maxMissed: a listener is gone when this many scans in a row have not seen it. A dump of sockets is
	// not taken at one moment, so one may be missed while others come and go.
	maxMissed = 2
)

// Config is what a Watcher needs.
type Config struct {
	// Own are ports that are never forwarded: the daemon's.
	Own []uint16
	// Addresses are the guest's, to which loopback ports are brought; nil means those of its interfaces,
	// loopback and IPv6's link-local ones left out.
	Addresses func() ([]netip.Addr, error)
	Logger    *slog.Logger

	scan func() ([]listener, error) // nil: the kernel's
}

// listener is a listening TCP socket.
type listener struct {
	at    netip.AddrPort
	inode uint64
}

// Watcher keeps forwards in step with what is listened on.
type Watcher struct {
	cfg      Config
	forwards map[netip.AddrPort]*forward
	limit    *limit
	group    sync.WaitGroup

	failing bool // the last scan failed
	full    bool // the bound on forwards was met
	changed time.Time
	last    []listener

	known   []netip.Addr
	knownAt time.Time
}

// New returns a Watcher that does nothing yet.
func New(cfg Config) *Watcher {
	return &Watcher{cfg: cfg, forwards: map[netip.AddrPort]*forward{}, limit: newLimit()}
}

// Run watches and forwards until ctx ends; then it closes every forward and its connections.
func (w *Watcher) Run(ctx context.Context) {
	scan := w.cfg.scan
	if scan == nil {
		s := &scanner{}
		defer s.close()
		scan = s.scan
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel() // resets the connections
		for at := range w.forwards {
			w.drop(at)
		}
		w.group.Wait()
	}()
	for {
		begun := time.Now()
		w.step(ctx, scan)
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.pause(time.Since(begun))):
		}
	}
}

func (w *Watcher) pause(took time.Duration) time.Duration {
	for _, f := range w.forwards {
		if f.missed > 0 && !w.failing {
			return max(confirm, took)
		}
	}
	least := busy
	if len(w.forwards) == 0 && time.Since(w.changed) > lately {
		least = calm
	}
	return max(least, min(share*took, slow))
}

// step brings the forwards in step with one scan. A scan that fails says nothing, so it changes nothing.
func (w *Watcher) step(ctx context.Context, scan func() ([]listener, error)) {
	all, err := scan()
	var addrs []netip.Addr
	if err == nil {
		addrs, err = w.addresses()
	}
	if err != nil {
		if !w.failing {
			w.cfg.Logger.Warn("listening ports cannot be seen; forwards stay as they are", "error", err)
		}
		w.failing = true
		return
	}
	if w.failing {
		w.cfg.Logger.Info("listening ports are seen again")
	}
	w.failing = false
	w.apply(ctx, plan(w.foreign(all), addrs, w.cfg.Own))
}

// foreign returns the listeners that are not forwards of ours, and notes whether they have changed.
func (w *Watcher) foreign(all []listener) []listener {
	own := map[uint64]bool{}
	for _, f := range w.forwards {
		own[f.inode] = true
	}
	all = slices.DeleteFunc(slices.Clone(all), func(l listener) bool { return own[l.inode] })
	slices.SortFunc(all, func(a, b listener) int { return a.at.Compare(b.at) })
	if !slices.Equal(all, w.last) {
		w.last, w.changed = all, time.Now()
	}
	return all
}

// apply closes what is not wanted, and opens what is.
func (w *Watcher) apply(ctx context.Context, p wanted) {
	for at, f := range w.forwards {
		switch targets, ok := p.forwards[at]; {
		case f.over.Load():
			w.drop(at)
			delete(p.forwards, at) // the scan may be older than that; a program that is back is seen by the next
		case ok:
			f.missed = 0
			f.targets.Store(&targets)
		case p.taken(at):
			w.drop(at)
		default:
			if f.missed++; f.missed >= maxMissed {
				w.drop(at)
			}
		}
	}
	wasFull := w.full
	w.full = false
	for _, at := range p.order {
		if w.forwards[at] != nil || p.forwards[at] == nil {
			continue
		}
		if len(w.forwards) >= maxForwards {
			w.full = true
			break
		}
		w.open(ctx, at, p.forwards[at])
	}
	if w.full && !wasFull {
		w.cfg.Logger.Warn("too many ports on loopback; the rest is not forwarded", "bound", maxForwards)
	}
}

func (w *Watcher) open(ctx context.Context, at netip.AddrPort, targets []netip.AddrPort) {
	f, err := listen(ctx, at, targets)
	if err != nil {
		// Somebody else has the port, such as a wildcard listener of both families: it needs no forward.
		if !errors.Is(err, syscall.EADDRINUSE) {
			w.cfg.Logger.Warn("port on loopback cannot be forwarded", "at", at.String(), "error", err)
		}
		return
	}
	w.forwards[at] = f
	w.cfg.Logger.Debug("port on loopback is forwarded", "at", at.String(), "targets", targets)
	w.group.Go(func() { f.serve(ctx, w.limit, &w.group) })
}

// drop closes a forward's listener. Its connections go on: the program may still serve them.
func (w *Watcher) drop(at netip.AddrPort) {
	_ = w.forwards[at].l.Close()
	delete(w.forwards, at)
	w.cfg.Logger.Debug("port is forwarded no more", "at", at.String())
}

func (w *Watcher) addresses() ([]netip.Addr, error) {
	if w.cfg.Addresses != nil {
		return w.cfg.Addresses()
	}
	if time.Since(w.knownAt) < addressesKept {
		return w.known, nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := prefix.Addr().Unmap()
		if addr.IsLoopback() || addr.Is6() && addr.IsLinkLocalUnicast() {
			continue
		}
		out = append(out, addr)
	}
	w.known, w.knownAt = out, time.Now()
	return out, nil
}
