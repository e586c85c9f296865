package transport

import (
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endpoint is where a connection leads.
type endpoint struct {
	tls    bool
	addr   string
	behind string // see Way.Behind
}

// idleConns are a Direct's connections that wait for their next exchange.
type idleConns struct {
	most int           // per endpoint; 0 keeps none
	life time.Duration // how long one waits

	mu    sync.Mutex
	conns map[endpoint][]idleConn // the one that has waited longest first
	timer *time.Timer
}

type idleConn struct {
	net.Conn
	since time.Time
}

// put keeps c, or closes it where there are enough.
func (i *idleConns) put(to endpoint, c net.Conn) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.conns[to]) >= i.most {
		_ = c.Close()
		return
	}
	if i.conns == nil {
		i.conns = map[endpoint][]idleConn{}
	}
	i.conns[to] = append(i.conns[to], idleConn{c, time.Now()})
	if i.timer == nil {
		i.timer = time.AfterFunc(i.life, i.prune)
	}
}

// take returns the connection that has waited shortest, if there is one that still lives.
func (i *idleConns) take(to endpoint) net.Conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	for all := i.conns[to]; len(all) > 0; all = i.conns[to] {
		last := all[len(all)-1]
		all[len(all)-1] = idleConn{}
		i.conns[to] = all[:len(all)-1]
		if time.Since(last.since) < i.life && quiet(last.Conn) {
			return last.Conn
		}
		_ = last.Close()
	}
	return nil
}

// prune closes those that have waited long enough, and comes again while there are others.
func (i *idleConns) prune() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer = nil
	for to, all := range i.conns {
		n := 0
		for n < len(all) && time.Since(all[n].since) >= i.life {
			_ = all[n].Close()
			n++
		}
		if n == len(all) {
			delete(i.conns, to)
			continue
		}
		i.conns[to] = append([]idleConn(nil), all[n:]...)
	}
	if len(i.conns) > 0 {
		i.timer = time.AfterFunc(i.life, i.prune)
	}
}

func (i *idleConns) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, all := range i.conns {
		for _, c := range all {
			_ = c.Close()
		}
	}
	i.conns = nil
	if i.timer != nil {
		i.timer.Stop()
		i.timer = nil
	}
}

// quiet says whether c is open and has nothing to read: bytes that nobody asked for would be taken for the next
// answer. What TLS has to read says nothing; there the first read tells.
func quiet(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = raw.Control(func(fd uintptr) {
		asked := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
		n, err := unix.Poll(asked[:], 0)
		silent = err == nil && n == 0
	})
	return err == nil && silent
}
