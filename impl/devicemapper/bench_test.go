package devicemapper

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkDisk makes a device and removes it, over an origin whose loop device others use too, as it is where
// sandboxes run.
func BenchmarkDisk(b *testing.B) {
	for name, grow := range map[string]int64{"same size": 0, "larger": 16 * mib} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			origin := r.origin("origin", 16*mib)
			r.create(r.disk("neighbour", origin, 16*mib))
			d := r.disk("bench", origin, 16*mib+grow)
			for b.Loop() {
				r.create(d)
				r.remove("bench")
				require.NoError(b, os.Remove(d.Cow))
			}
			r.remove("neighbour")
		})
	}
}

// BenchmarkLoop attaches and clears a loop device: the part of that which is no device-mapper's.
func BenchmarkLoop(b *testing.B) {
	r := newRig(b)
	origin := r.origin("origin", mib)
	for b.Loop() {
		h, err := r.Origins().Acquire(b.Context(), origin)
		require.NoError(b, err)
		require.NoError(b, h.Release())
	}
}

// BenchmarkWrite writes 4 KiB at a time to a fresh disk, synced or not, beside the same in a plain file.
func BenchmarkWrite(b *testing.B) {
	for _, where := range []string{"snapshot", "file"} {
		for _, synced := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/sync=%t", where, synced), func(b *testing.B) {
				r := newRig(b)
				path := r.origin("file", 16*mib)
				if where == "snapshot" {
					path = r.create(r.disk("bench", path, 16*mib))
				}
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				require.NoError(b, err)
				data := noise(1, 4096)
				b.SetBytes(4096)
				for i := 0; b.Loop(); i++ {
					_, err := f.WriteAt(data, int64(i)*5*4096%(16*mib))
					require.NoError(b, err)
					if synced {
						require.NoError(b, f.Sync())
					}
				}
				require.NoError(b, f.Close())
				r.remove("bench")
			})
		}
	}
}
