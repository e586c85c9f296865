package uffd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

// forget drops the files' content from the page cache.
func forget(b *testing.B, paths ...string) {
	for _, path := range paths {
		f, err := os.Open(path)
		require.NoError(b, err)
		require.NoError(b, f.Sync())
		require.NoError(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		require.NoError(b, f.Close())
	}
}

// BenchmarkFaults lets two threads touch all pages of a memory of 128 MiB once, in random order: by a file
// that is mapped privately, as Firecracker's File backend does, and by a page server in a process of its
// own. It reports touches per second and what one took.
func BenchmarkFaults(b *testing.B) {
	r := newRig(b, 128<<20/memfile.PageSize)
	flat := filepath.Join(r.dir, "memory.flat")
	c, err := memfile.Open(r.layers...)
	require.NoError(b, err)
	_, err = c.Flatten(b.Context(), flat)
	require.NoError(b, err)
	require.NoError(b, c.Close())
	for _, cold := range []bool{false, true} {
		files := append([]string{flat}, r.layers...)
		b.Run(fmt.Sprintf("cold=%t/file", cold), func(b *testing.B) {
			r.touch(b, play{File: flat}, cold, files, func() {})
		})
		for _, batch := range []int{4 << 10, 32 << 10, 128 << 10, 512 << 10} {
			b.Run(fmt.Sprintf("cold=%t/uffd/batch=%dKiB", cold, batch>>10), func(b *testing.B) {
				r.touchServed(b, cold, files, func(c *Config) { c.Batch = batch })
			})
		}
		set := filepath.Join(r.dir, "set")
		require.NoError(b, os.WriteFile(set, encodeSet([]window{{0, r.size / memfile.PageSize, false}}), 0o600))
		b.Run(fmt.Sprintf("cold=%t/uffd/batch=128KiB+prefetch", cold), func(b *testing.B) {
			r.touchServed(b, cold, files, func(c *Config) { c.WorkingSet = set })
		})
	}
}

func (r *rig) touchServed(b *testing.B, cold bool, files []string, change func(*Config)) {
	var p *Process
	r.touch(b, play{}, cold, files, func() {
		if p != nil {
			<-p.Done()
		}
		cfg := r.startConfig()
		change(&cfg.Config)
		var err error
		p, err = Start(b.Context(), cfg)
		require.NoError(b, err)
	})
	<-p.Done()
	require.NoError(b, p.Kill(context.WithoutCancel(b.Context())))
}

func (r *rig) touch(b *testing.B, how play, cold bool, files []string, serve func()) {
	var pages, total, p50, p99, most, rounds int64
	for b.Loop() {
		b.StopTimer()
		if cold {
			forget(b, files...)
		}
		serve()
		v := r.startVMM(b, how)
		v.says(b, "ready")
		b.StartTimer()
		v.tell(b, "touch", 2)
		line := v.says(b, "ok")
		b.StopTimer()
		var n, took, a, z, m int64
		_, err := fmt.Sscanf(line, "ok %d %d %d %d %d", &n, &took, &a, &z, &m)
		require.NoError(b, err)
		pages, total, p50, p99, most, rounds = pages+n, total+took, p50+a, p99+z, max(most, m), rounds+1
		v.kill()
		b.StartTimer()
	}
	b.ReportMetric(float64(pages)/(float64(total)/1e9), "pages/s")
	b.ReportMetric(float64(p50/rounds)/1e3, "p50-µs")
	b.ReportMetric(float64(p99/rounds)/1e3, "p99-µs")
	b.ReportMetric(float64(most)/1e3, "max-µs")
}
