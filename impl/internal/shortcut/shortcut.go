// Package shortcut lets who has something short to send to a reader send it itself, past the queue and the goroutine that
// empties it, where that needs no waiting. Each change of goroutines wakes threads, which costs more than the rest of what a
// program does with a key or its echo.
package shortcut

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Short is how many bytes of an item may take the shortcut. A socket that can be written to has a third of its buffer left, 5 KiB
// of Linux's least default of 16 (tcp_wmem), of which each packet takes about 1 KiB beside its content.
const Short = 1024

// RoomOf returns a function that says whether c's socket takes a short item at once. It is nil where that cannot be known.
func RoomOf(c net.Conn) func() bool {
	if t, ok := c.(*tls.Conn); ok { // which makes one record of it
		c = t.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return func() bool {
		room := false
		err := raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, err := unix.Poll(fds, 0)
			room = err == nil && n == 1 && fds[0].Revents == unix.POLLOUT
		})
		return err == nil && room
	}
}

// Path is the way of items to one reader: through a queue, which is its owner's, or past it. The zero Path is closed: nothing
// goes past the queue.
type Path[T any] struct {
	waiting atomic.Int64 // in the queue, or out of it and not sent

	mu   sync.Mutex // who sends holds it
	send func(T) error
	room func() bool // nil: nothing goes past the queue
}

// Open says how an item is sent, by one goroutine at a time, and whether there is room for a short one; room may be nil.
func (p *Path[T]) Open(send func(T) error, room func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.send, p.room = send, room
}

// Close waits for who sends. Nothing goes past the queue from then on.
func (p *Path[T]) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.room = nil
}

// Queue is told of each item before it is put into the queue.
func (p *Path[T]) Queue() { p.waiting.Add(1) }

// Send sends an item that came out of the queue.
func (p *Path[T]) Send(item T) error {
	defer p.waiting.Add(-1)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.send(item)
}

// Beside calls send, which sends what is no item, while nobody sends one.
func (p *Path[T]) Beside(send func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return send()
}

// Past sends an item of size bytes past the queue, or says that it has to be put there: because others wait there, somebody is
// sending, there is no room, or it could not be sent. It is for who fills the queue.
func (p *Path[T]) Past(item T, size int) bool {
	if size > Short || p.waiting.Load() > 0 || !p.mu.TryLock() {
		return false
	}
	defer p.mu.Unlock()
	if p.room == nil || !p.room() {
		return false
	}
	if p.send(item) != nil {
		p.room = nil // whoever sends the next one will hear of it
		return false
	}
	return true
}
