package snapshot_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/memfile"
	"wrenn/impl/snapshot"
)

// churn fills memory, changes some of it and zeroes some, for ever.
const churn = `
import mmap, os, random, time
m = mmap.mmap(-1, 24 << 20)
m.write(os.urandom(24 << 20))
open("/home/user/ready", "w").close()
while True:
    at = random.randrange(24 << 8) << 12
    m[at:at + 4096] = random.choice([bytes(4096), os.urandom(4096)])
    time.sleep(0.0005)
`

// TestS07_LayersAmountToTheVMMsMemory compares what the layers of a paused machine amount to with the whole of
// its memory, as the VMM had it at the same moment, byte for byte, over some pauses and a snapshot in between.
func TestS07_LayersAmountToTheVMMsMemory(t *testing.T) {
	dir := harness.Dir(t)
	s := harness.Start(t, dir, "--dump-memory")
	box := s.Create()
	ctx, cancel := context.WithTimeout(t.Context(), 3*harness.Patience)
	defer cancel()
	require.NoError(t, s.Guest(box).WriteFile(ctx, "", "/home/user/churn.py", strings.NewReader(churn), int64(len(churn))))
	s.Exec(box, "sh", "-ec", `setsid python3 churn.py >/dev/null 2>&1 & for i in $(seq 600); do if [ -f ready ]; then exit; fi; sleep 0.1; done; exit 1`)
	for i := range 4 {
		if i == 2 {
			_, _, err := s.Client.CreateSnapshot(ctx, box.SandboxID, "between")
			require.NoError(t, err)
		}
		_, err := s.Client.Pause(ctx, box.SandboxID, false)
		require.NoError(t, err)
		layers := compare(t, filepath.Join(dir, "agent", "sandboxes", box.SandboxID))
		assert.Equal(t, []int{1, 2, 4, 5}[i], layers, "layers after pause %d", i+1)
		_, err = s.Client.Resume(ctx, box.SandboxID, 600, false)
		require.NoError(t, err)
		time.Sleep(500 * time.Millisecond) // the guest goes on changing its memory
	}
	s.Stop()
}

// compare compares the snapshot of the sandbox in dir with the dump beside it.
func compare(t *testing.T, dir string) (layers int) {
	t.Helper()
	layers, err := snapshot.Layers(filepath.Join(dir, "snapshot"))
	require.NoError(t, err)
	var paths []string
	for n := range layers {
		paths = append(paths, filepath.Join(dir, "snapshot", snapshot.LayerName(n)))
	}
	chain, err := memfile.Open(paths...)
	require.NoError(t, err)
	defer chain.Close()
	dump, err := os.Open(filepath.Join(dir, "memory.dump"))
	require.NoError(t, err)
	defer dump.Close()
	const piece = 1 << 20
	want, got := make([]byte, piece), make([]byte, piece)
	wrong := 0
	for at := int64(0); at < chain.Size(); at += piece {
		_, err := io.ReadFull(io.NewSectionReader(dump, at, piece), want)
		require.NoError(t, err)
		_, err = chain.ReadAt(got, at)
		require.NoError(t, err)
		for page := 0; page < piece && !bytes.Equal(want, got); page += 4096 {
			if !bytes.Equal(want[page:page+4096], got[page:page+4096]) {
				wrong++
				copy(got[page:page+4096], want[page:page+4096])
			}
		}
	}
	require.Zero(t, wrong, "pages of %d that differ: %s", chain.Size()/4096, fmt.Sprint(paths))
	return layers
}
