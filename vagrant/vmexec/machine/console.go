package machine

import "sync"

// consoleKept is how much of a console is kept, in bytes: a kernel's last words with registers and stack
// take some 5 KB per CPU.
const consoleKept = 64 << 10

// Console keeps the end of what is written to it. The zero value is ready; it may be used by several
// goroutines.
type Console struct {
	mu   sync.Mutex
	tail []byte
}

// Write keeps p.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - consoleKept; over > 0 {
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	return len(p), nil
}

// String is the end of what was written, at most 64 KiB.
func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.tail)
}
