package bench_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/bench/ground"
	"wrenn/bench/load"
)

const (
	// askers is how many clients ask at a time, per processor.
	askers = 16
	// download is the size of one download in bytes.
	download = 64 << 20
)

// BenchmarkProxy sends requests and downloads through the real programs, and through nginx twice, which is as
// many hops to the same server.
func BenchmarkProxy(b *testing.B) {
	g := ground.New(b, ground.Config{})
	for _, d := range []ground.Design{ground.Isolated, ground.Shared, ground.Nginx} {
		b.Run("what=requests/design="+d.Name, func(b *testing.B) {
			c, err := d.Open(b.Context(), g, g.Loopback())
			require.NoError(b, err)
			defer c.Close()
			b.SetParallelism(askers)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if n, err := get(c.Door, "/poll"); err != nil || n == 0 {
						b.Errorf("%d bytes: %v", n, err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
		})
		b.Run("what=download/design="+d.Name, func(b *testing.B) {
			c, err := d.Open(b.Context(), g, g.Loopback())
			require.NoError(b, err)
			defer c.Close()
			b.SetBytes(download)
			for b.Loop() {
				n, err := get(c.Door, fmt.Sprint("/bytes/", download))
				require.NoError(b, err)
				require.EqualValues(b, download, n)
			}
		})
	}
}

// get returns how long the body at path is.
func get(door load.Door, path string) (int64, error) {
	req, err := http.NewRequest(http.MethodGet, "http://guest"+path, nil)
	if err != nil {
		return 0, err
	}
	res, err := door.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s", res.Status)
	}
	return io.Copy(io.Discard, res.Body)
}
