package snapshot

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the coarsest of a kernel's clocks for files (HZ=100): two writes within it may have the same time.
const tick = 10 * time.Millisecond

// maxKnown bounds Known; beyond it everything is forgotten, and read once more.
const maxKnown = 10_000

// Known are the disks whose checksums were computed while it lives, and that nobody has written to since: they need
// not be read again. It knows a file by its inode, its size and the time of its last write, so a file that is torn,
// changed or another one is not known. What a medium loses by itself is found when another life of the program reads
// it. The zero value knows nothing; nil stays so.
type Known struct {
	mu    sync.Mutex
	files map[identity]uint32
}

type identity struct {
	dev, ino      uint64
	size, written int64
}

func identityOf(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return identity{st.Dev, st.Ino, st.Size, st.Mtim.Nano()}, nil
}

// note keeps the checksum of what a file was before it was read, if nobody has written to it meanwhile.
func (k *Known) note(f *os.File, before identity, sum uint32) {
	now, err := identityOf(f)
	if k == nil || err != nil || now != before || time.Since(time.Unix(0, now.written)) < tick {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.files == nil || len(k.files) >= maxKnown {
		k.files = map[identity]uint32{}
	}
	k.files[before] = sum
}

// has says whether a file is known to have that checksum.
func (k *Known) has(what identity, sum uint32) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	have, ok := k.files[what]
	return ok && have == sum
}
