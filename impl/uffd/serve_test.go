package uffd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

func TestS10_PagesComeOutOfTheLayers(t *testing.T) {
	r := newRig(t, 3000)
	for name, c := range map[string]struct {
		batch int
		play  play
	}{
		"one page at a time":            {memfile.PageSize, play{}},
		"batches":                       {0, play{}},
		"large batches, two regions":    {2 << 20, play{Split: true}},
		"the old spelling":              {32 << 10, play{Old: true, Split: true}},
		"a handshake in several pieces": {0, play{Slow: true}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := r.config()
			cfg.Batch = c.batch
			s := serveHere(t, cfg)
			v := r.startVMM(t, c.play)
			v.says(t, "ready")
			v.tell(t, "compare", 8)
			v.says(t, "ok")
			v.quit(t)
			require.NoError(t, s.wait(t))
			counts := s.counts(t)
			pages := r.size / memfile.PageSize
			assert.Equal(t, pages, counts.Copied+counts.Zeroed, "each page is filled once")
			assert.Equal(t, r.holes, counts.Zeroed, "a hole of the base is the zero page")
			if c.batch == memfile.PageSize {
				assert.GreaterOrEqual(t, counts.Faults, pages)
			} else {
				assert.Less(t, counts.Faults, pages/2, "pages come in batches")
			}
			assert.NoFileExists(t, cfg.Socket)
		})
	}
}

func TestS10_APageThatWasGivenAwayIsZeroWhateverRaces(t *testing.T) {
	r := newRig(t, 6000)
	cfg := r.config()
	cfg.WorkingSet = r.dir + "/set"
	// Prefetching takes part.
	require.NoError(t, os.WriteFile(cfg.WorkingSet, encodeSet([]window{{0, 6000, false}}), 0o600))
	s := serveHere(t, cfg)
	v := r.startVMM(t, play{Split: true})
	v.says(t, "ready")
	v.tell(t, "race", 8)
	v.says(t, "ok")
	v.tell(t, "compare", 4)
	v.says(t, "ok")
	v.quit(t)
	require.NoError(t, s.wait(t))
	counts := s.counts(t)
	assert.Greater(t, counts.Removals, int64(1000))
	t.Logf("%+v", counts)
}

func TestS10_ARefusedFaultIsServedWithoutAFurtherEvent(t *testing.T) {
	r := newRig(t, 4000)
	cfg := r.config()
	cfg.Batch = memfile.PageSize
	s := serveHere(t, cfg)
	v := r.startVMM(t, play{})
	v.says(t, "ready")
	v.tell(t, "duel", 700)
	v.says(t, "ok")
	v.quit(t)
	require.NoError(t, s.wait(t))
	counts := s.counts(t)
	assert.Positive(t, counts.Deferred, "no fault was refused: this proves nothing")
	t.Logf("%+v", counts)
}

// TestS10_EventsAreReadWhileNothingIsFilled: a removal that is read while old content is on its way to the
// page would let that content stay. The kernel's own order makes the moment too short to be met by racing.
func TestS10_EventsAreReadWhileNothingIsFilled(t *testing.T) {
	var pipe [2]int
	require.NoError(t, unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC))
	defer func() { assert.NoError(t, errors.Join(unix.Close(pipe[0]), unix.Close(pipe[1]))) }()
	event := make([]byte, messageSize)
	event[0] = eventRemove
	binary.NativeEndian.PutUint64(event[8:], memfile.PageSize)
	binary.NativeEndian.PutUint64(event[16:], 2*memfile.PageSize)
	_, err := unix.Write(pipe[1], event)
	require.NoError(t, err)

	const size = 4 * memfile.PageSize
	s := &server{vmm: &vmm{memory: memory{pipe[0]}}, pages: newPages([]region{{0, size, 0}}, size)}
	s.changing.RLock() // a page is being filled
	done := make(chan error, 1)
	go func() {
		_, err := s.drain(make([]byte, messageSize))
		done <- err
	}()
	select {
	case <-done:
		require.FailNow(t, "events were read")
	case <-time.After(100 * time.Millisecond):
	}
	unread, err := unix.IoctlGetInt(pipe[0], unix.TIOCINQ)
	require.NoError(t, err)
	assert.Equal(t, messageSize, unread, "the removal was read")
	s.changing.RUnlock()
	require.NoError(t, <-done)
	assert.True(t, s.pages.removed.has(1), "and noted with the same lock held")
	assert.False(t, s.pages.removed.has(2))
}

func TestS10_WhatWasGivenAwayWhileItWasReadDoesNotComeBack(t *testing.T) {
	s := &server{pages: newPages([]region{{0, 8 * memfile.PageSize, 0}}, 8*memfile.PageSize)}
	buf := make([]byte, 4*memfile.PageSize)
	for i := range buf {
		buf[i] = byte(2 + i/memfile.PageSize)
	}
	s.pages.remove(3*memfile.PageSize, 4*memfile.PageSize)
	w, b := s.afterRemoval(window{2, 6, false}, buf, 4)
	assert.Equal(t, window{4, 5, false}, w, "the neighbour")
	assert.Equal(t, buf[2*memfile.PageSize:3*memfile.PageSize], b)
	w, _ = s.afterRemoval(window{2, 6, false}, buf, 3)
	assert.Equal(t, window{3, 4, true}, w, "the page itself")
	w, _ = s.afterRemoval(window{0, 8, true}, nil, 6)
	assert.Equal(t, window{6, 7, true}, w)
}

func TestS10_MemoryThatCannotBeReadKillsTheVMM(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"a truncated layer": func(path string) error { return os.Truncate(path, memfile.PageSize) },
		"a changed layer": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err == nil {
				defer f.Close()
				_, err = f.WriteAt([]byte(strings.Repeat("x", 1<<20)), 0)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1000)
			s := serveHere(t, r.config())
			v := r.startVMM(t, play{})
			v.says(t, "ready")
			require.NoError(t, spoil(r.layers[0]))
			v.tell(t, "touch", 4)
			v.killed(t)
			err := s.wait(t)
			require.ErrorIs(t, err, memfile.ErrCorrupt)
			require.ErrorContains(t, err, r.layers[0])
			assert.Contains(t, s.log.String(), "vmm is killed")
			assert.Contains(t, s.log.String(), r.layers[0], "the log says why")
		})
	}
}

func openFiles(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var all []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			all = append(all, e.Name()+" "+target)
		}
	}
	return fmt.Sprint(len(all), " ", strings.Join(all, "\n"))
}

func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	return len(entries)
}

func TestS10_NothingIsLeftAfterStop(t *testing.T) {
	r := newRig(t, 500)
	cfg := r.config()
	cfg.WorkingSet = r.dir + "/set"
	round := func() {
		s := serveHere(t, cfg)
		v := r.startVMM(t, play{})
		v.says(t, "ready")
		v.tell(t, "first", 100)
		v.says(t, "ok")
		s.stop()
		require.ErrorIs(t, s.wait(t), ErrStopped)
		v.killed(t)
		assert.NoFileExists(t, cfg.Socket)
	}
	round() // what the runtime makes once
	files, routines, before := openFiles(t), runtime.NumGoroutine(), threads(t)
	const rounds = 15
	for range rounds {
		round()
	}
	assert.Equal(t, files, openFiles(t))
	eventually(t, "goroutines stayed", func() bool { return runtime.NumGoroutine() <= routines })
	assert.Less(t, threads(t), before+rounds, "each round left a thread")
}

func TestS10_APeerThatSaysNothingIsLetGo(t *testing.T) {
	r := newRig(t, 100)
	s := serveHere(t, r.config())
	for range 3 {
		conn, err := net.Dial("unix", s.cfg.Socket)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	v := r.startVMM(t, play{})
	v.says(t, "ready")
	v.tell(t, "compare", 2)
	v.says(t, "ok")
	v.quit(t)
	require.NoError(t, s.wait(t))
}

func TestS10_AHandshakeThatMakesNoSenseEndsTheVMM(t *testing.T) {
	r := newRig(t, 100)
	for name, c := range map[string]struct {
		play play
		want string
		dies bool
	}{
		"no array":           {play{Say: `{"a": 1}`, Pad: 1 << 17}, "no array of regions", true},
		"no regions":         {play{Say: `[]`}, "0 regions", true},
		"too little":         {play{Say: `[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]`}, "for a memory of", true},
		"huge pages":         {play{Say: `[{"base_host_virt_addr":0,"size":409600,"offset":0,"page_size":2097152}]`}, "page size", true},
		"two descriptors":    {play{Hand: "two"}, "one userfaultfd", true},
		"another descriptor": {play{Hand: "file"}, "one userfaultfd", false},
	} {
		t.Run(name, func(t *testing.T) {
			files := openFiles(t)
			s := serveHere(t, r.config())
			v := r.startVMM(t, c.play)
			err := s.wait(t)
			require.ErrorContains(t, err, c.want)
			if c.dies {
				v.killed(t)
			}
			v.kill()
			assert.Equal(t, files, openFiles(t))
		})
	}
}

func TestS10_TheWaitForAVMMHasAnEnd(t *testing.T) {
	r := newRig(t, 100)
	cfg := r.config()
	cfg.AcceptTimeout = 50 * time.Millisecond
	files := openFiles(t)
	require.ErrorIs(t, Serve(t.Context(), cfg), os.ErrDeadlineExceeded)
	assert.NoFileExists(t, cfg.Socket)

	cfg.AcceptTimeout = 0
	s := serveHere(t, cfg)
	require.ErrorIs(t, Serve(t.Context(), cfg), fs.ErrExist, "a second server at the same socket")
	assert.FileExists(t, cfg.Socket)
	s.stop()
	require.ErrorIs(t, s.wait(t), context.Canceled)

	// A peer that is connected and silent does not hold a stop up.
	s = serveHere(t, cfg)
	conn, err := net.Dial("unix", cfg.Socket)
	require.NoError(t, err)
	s.stop()
	require.Error(t, s.wait(t))
	require.NoError(t, conn.Close())
	assert.Equal(t, files, openFiles(t))

	for _, bad := range []func(*Config){
		func(c *Config) { c.Batch = 5000 }, func(c *Config) { c.Batch = 1 << 30 }, func(c *Config) { c.Workers = 1000 },
		func(c *Config) { c.Socket = strings.Repeat("x", 104) }, func(c *Config) { c.Layers = nil },
		func(c *Config) { c.Layers = []string{r.layers[0] + ".no"} }, func(c *Config) { c.RecordFor = -1 },
	} {
		cfg := r.config()
		bad(&cfg)
		require.Error(t, Serve(t.Context(), cfg))
	}
}

func TestS10_TheWorkingSetIsRecordedAndPrefetched(t *testing.T) {
	r := newRig(t, 4000)
	cfg := r.config()
	cfg.WorkingSet = r.dir + "/set"
	const first = 700
	run := func(after func(*player, *serving)) *serving {
		s := serveHere(t, cfg)
		v := r.startVMM(t, play{})
		v.says(t, "ready")
		after(v, s)
		v.quit(t)
		require.NoError(t, s.wait(t))
		return s
	}
	recorded := run(func(v *player, _ *serving) {
		v.tell(t, "first", first)
		v.says(t, "ok")
	}).counts(t)
	assert.Zero(t, recorded.Prefetched)
	assert.Less(t, recorded.Faults, int64(first/4), "pages before and behind a fault come along with it")
	require.FileExists(t, cfg.WorkingSet)

	prefetched := run(func(v *player, s *serving) {
		eventually(t, "nothing is prefetched", func() bool { return strings.Contains(s.log.String(), "working set prefetched") })
		v.tell(t, "first", first)
		v.says(t, "ok")
		v.tell(t, "compare", 4)
		v.says(t, "ok")
	}).counts(t)
	assert.Equal(t, recorded.Copied+recorded.Zeroed, prefetched.Prefetched, "what was filled then is filled now")
	assert.Equal(t, r.size/memfile.PageSize, prefetched.Copied+prefetched.Zeroed)

	// One that cannot be used is made anew.
	good, err := os.ReadFile(cfg.WorkingSet)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(cfg.WorkingSet, good[:len(good)-3], 0o600))
	s := run(func(v *player, _ *serving) {
		v.tell(t, "first", first)
		v.says(t, "ok")
	})
	assert.Contains(t, s.log.String(), "the working set cannot be used")
	again, err := os.ReadFile(cfg.WorkingSet)
	require.NoError(t, err)
	assert.Equal(t, good, again, "the same faults in the same order")
}
