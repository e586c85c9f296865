package process

// ringSize is how much of a terminal's output is kept for a reader that attaches later: 1 MiB, some
// 10,000 full lines of 100 columns.
const ringSize = 1 << 20

// ring keeps the last ringSize bytes that were added. It grows with its content.
type ring struct {
	buf  []byte
	next int // where the oldest byte is, once buf is full
}

func (r *ring) add(p []byte) {
	if len(p) > ringSize {
		p = p[len(p)-ringSize:]
	}
	if room := ringSize - len(r.buf); room > 0 {
		n := min(room, len(p))
		r.buf = append(r.buf, p[:n]...)
		p = p[n:]
	}
	for len(p) > 0 {
		n := copy(r.buf[r.next:], p)
		r.next = (r.next + n) % ringSize
		p = p[n:]
	}
}

// bytes returns a copy, oldest byte first.
func (r *ring) bytes() []byte {
	out := make([]byte, 0, len(r.buf))
	out = append(out, r.buf[r.next:]...)
	return append(out, r.buf[:r.next]...)
}
