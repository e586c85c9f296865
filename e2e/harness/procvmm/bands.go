package main

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What each band of a limit may hold, as in impl/qemu: what passes in 50 ms, four of the largest frames at least.
const (
	queueTime = 50 * time.Millisecond
	minQueue  = 256 << 10
)

// bands are frames that wait for a limit: those whose IPv4 header asks for low delay (RFC 1349) go first. Frames for
// which there is no room are lost.
type bands struct {
	mu    sync.Mutex
	some  sync.Cond
	ended bool
	first ring
	other ring
	// pass, if set, lets a frame go by at once, or returns false. It is asked while nothing waits and nobody is at a
	// frame that was taken: a queue that nobody needs costs no handing over. And it is asked for a frame that asks for low
	// delay where none but others wait, while one of them, of held bytes, has been taken and rests.
	pass    func(frame []byte, held int) bool
	taken   bool
	held    int // bytes of the frame that was taken, if it does not ask for low delay
	resting bool
}

func newBands(size int) *bands {
	b := &bands{first: ring{data: make([]byte, size)}, other: ring{data: make([]byte, size)}}
	b.some.L = &b.mu
	return b
}

func (b *bands) put(frame []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	to := &b.other
	if wantsLowDelay(frame) {
		to = &b.first
	}
	idle := !b.taken && b.first.len+b.other.len == 0
	ahead := to == &b.first && b.first.len == 0 && b.resting && b.held > 0
	if b.pass != nil && (idle || ahead) && b.pass(frame, b.held) {
		return
	}
	if to.put(frame) {
		b.some.Signal()
	}
}

// take waits for a frame and returns its length; 0 at the end. buf has room for maxFrame. The frame before it is done
// with.
func (b *bands) take(buf []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.taken, b.held = false, 0; ; {
		if n := b.first.take(buf); n > 0 {
			b.taken = true
			return n
		}
		if n := b.other.take(buf); n > 0 {
			b.taken, b.held = true, n
			return n
		}
		if b.ended {
			return 0
		}
		b.some.Wait()
	}
}

// rest lets the frame that was taken wait for d.
func (b *bands) rest(d time.Duration) {
	b.rests(true)
	time.Sleep(d)
	b.rests(false)
}

func (b *bands) rests(does bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resting = does
}

func (b *bands) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.some.Signal()
}

// wantsLowDelay looks behind the header that a TAP puts before each frame.
func wantsLowDelay(frame []byte) bool {
	const (
		virtioHeader = 10
		ethernet     = 14
		lowDelay     = 0x10
	)
	if len(frame) < virtioHeader+ethernet+2 {
		return false
	}
	packet := frame[virtioHeader+ethernet:]
	const notECN = 0xfc
	return binary.BigEndian.Uint16(frame[virtioHeader+ethernet-2:]) == unix.ETH_P_IP && packet[1]&notECN == lowDelay
}

// ring is a queue of frames, each behind its length.
type ring struct {
	data       []byte
	begin, len int
}

const lengthBytes = 4

func (r *ring) put(frame []byte) bool {
	if len(r.data)-r.len < lengthBytes+len(frame) {
		return false
	}
	r.write(binary.BigEndian.AppendUint32(nil, uint32(len(frame))))
	r.write(frame)
	return true
}

func (r *ring) take(buf []byte) int {
	if r.len == 0 {
		return 0
	}
	var length [lengthBytes]byte
	r.read(length[:])
	n := int(binary.BigEndian.Uint32(length[:]))
	r.read(buf[:n])
	return n
}

func (r *ring) write(p []byte) {
	at := (r.begin + r.len) % len(r.data)
	n := copy(r.data[at:], p)
	copy(r.data, p[n:])
	r.len += len(p)
}

func (r *ring) read(p []byte) {
	n := copy(p, r.data[r.begin:])
	copy(p[n:], r.data)
	r.begin = (r.begin + len(p)) % len(r.data)
	r.len -= len(p)
}
