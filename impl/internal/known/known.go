// Package known remembers which files were read and found right.
package known

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the coarsest of a kernel's clocks for files (HZ=100): two writes within it may have the same time.
const tick = 10 * time.Millisecond

// most bounds Files; beyond it everything is forgotten, and read once more.
const most = 10_000

// Files are those whose checksums were computed while it lives, and that nobody has written to since: they need not be
// read again. It knows a file by its inode, its size and the time of its last write, so one that is torn, changed or
// another one is not known. What a medium loses by itself is found when another life of the program reads it. The zero
// value knows nothing; nil stays so.
type Files struct {
	mu   sync.Mutex
	sums map[Identity]uint32
}

// Identity is what a file's content is not changed without.
type Identity struct {
	dev, ino      uint64
	size, written int64
}

// Of returns what f is now.
func Of(f *os.File) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Identity{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return Identity{st.Dev, st.Ino, st.Size, st.Mtim.Nano()}, nil
}

// Note keeps the checksum of what f was before it was read, if nobody has written to it meanwhile.
func (k *Files) Note(f *os.File, before Identity, sum uint32) {
	now, err := Of(f)
	if k == nil || err != nil || now != before || time.Since(time.Unix(0, now.written)) < tick {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sums == nil || len(k.sums) >= most {
		k.sums = map[Identity]uint32{}
	}
	k.sums[before] = sum
}

// Has says whether a file is known to have that checksum.
func (k *Files) Has(what Identity, sum uint32) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	have, ok := k.sums[what]
	return ok && have == sum
}
