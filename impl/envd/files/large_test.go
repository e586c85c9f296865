package files

import (
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// zeros is an endless stream that costs nothing.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestG03_LargeBodiesInConstantMemory(t *testing.T) {
	const size = 256 << 20
	s := newServer(t)
	peak := watchHeap(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/files?path=big", io.LimitReader(zeros{}, size))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := s.Client().Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 200, res.StatusCode)

	req, err = http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/files?path=big", nil)
	require.NoError(t, err)
	for _, coding := range []string{"identity", "gzip"} {
		req.Header.Set("Accept-Encoding", coding)
		res, err = s.Client().Do(req)
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		if coding == "identity" {
			assert.EqualValues(t, size, n)
		}
	}
	grown := peak()
	t.Logf("the heap grew by %d KiB for %d MiB up and twice down", grown>>10, size>>20)
	assert.Less(t, grown, int64(16<<20))
}

// watchHeap samples the live heap until the returned function is called, which tells how far it grew.
func watchHeap(t *testing.T) func() int64 {
	t.Helper()
	in := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	runtime.GC()
	before := in()
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := before
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-tick.C:
				most = max(most, in())
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-peak - before
	}
}
