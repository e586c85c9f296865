package uffd

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

func TestS10_PrefetchingLetsFaultsGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Its memory is no descriptor: whoever fills a page gets an error. Its page is given away, so that no
		// layer is asked.
		s := &server{batch: 1, logger: slog.New(slog.DiscardHandler), vmm: &vmm{memory: memory{-1}, pidfd: -1},
			pages: newPages([]region{{0, memfile.PageSize, 0}}, memfile.PageSize)}
		s.pages.remove(0, memfile.PageSize)
		s.waiting.Store(2)
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		prefetch := func() { done <- s.prefetch(ctx, []window{{0, 1, false}}) }
		go prefetch()
		synctest.Wait()
		s.waiting.Store(1)
		synctest.Wait()
		require.Empty(t, done, "it went before a fault")
		s.waiting.Store(0)
		require.ErrorIs(t, <-done, unix.EBADF, "without faults it fills pages")

		s.waiting.Store(1)
		go prefetch()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled, "it waits for faults when the server stops")
	})
}

func TestS10_AChangedWorkingSetIsRefused(t *testing.T) {
	good := encodeSet([]window{{0, 5, false}, {9, 10, false}})
	_, err := decodeSet(good, 10)
	require.NoError(t, err)
	_, err = decodeSet(good, 9)
	require.Error(t, err, "one of a larger memory")
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		_, err := decodeSet(bad, 1<<40)
		require.Error(t, err, "byte %d", i)
	}
}

func FuzzWorkingSet(f *testing.F) {
	f.Add(encodeSet([]window{{0, 5, false}, {9, 10, false}}))
	f.Add([]byte(setMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := decodeSet(b, 100)
		if err != nil {
			return
		}
		for _, w := range set {
			if w.from < 0 || w.to > 100 || w.from >= w.to {
				t.Fatalf("%+v", w)
			}
		}
		assert.Equal(t, b, encodeSet(set))
	})
}
