package network

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newAllocator(tb testing.TB, count Slot) *Allocator {
	tb.Helper()
	a, err := NewAllocator(count)
	require.NoError(tb, err)
	return a
}

func TestN01_AllSlotsThenNone(t *testing.T) {
	a := newAllocator(t, MaxSlot)
	seen := make([]bool, MaxSlot+1)
	for range MaxSlot {
		s, err := a.Acquire()
		require.NoError(t, err)
		require.NoError(t, s.Check())
		require.False(t, seen[s], "slot %d twice", s)
		seen[s] = true
	}
	_, err := a.Acquire()
	require.ErrorIs(t, err, ErrNoFreeSlot)
	require.ErrorContains(t, err, "no free")
	require.Equal(t, int(MaxSlot), a.Held())

	require.NoError(t, a.Release(777))
	s, err := a.Acquire()
	require.NoError(t, err)
	assert.Equal(t, Slot(777), s)
}

func TestN01_SlotsOutOfRangeAreErrors(t *testing.T) {
	for _, count := range []Slot{0, -1, 32768} {
		_, err := NewAllocator(count)
		require.ErrorIs(t, err, ErrInvalidSlot, "%d", count)
	}
	a := newAllocator(t, 3)
	for _, s := range []Slot{0, -1, 4, 32767, 32768, 1 << 40} {
		require.ErrorIs(t, a.Claim(s), ErrInvalidSlot, "%d", s)
		require.ErrorIs(t, a.Release(s), ErrInvalidSlot, "%d", s)
	}
	assert.Zero(t, a.Held())
}

func TestN02_AReleasedSlotRestsWhileAnyOtherIsFree(t *testing.T) {
	a := newAllocator(t, 5)
	first, err := a.Acquire()
	require.NoError(t, err)
	require.NoError(t, a.Release(first))
	for range 4 {
		s, err := a.Acquire()
		require.NoError(t, err)
		assert.NotEqual(t, first, s, "it came back though others were free")
	}
	s, err := a.Acquire()
	require.NoError(t, err)
	assert.Equal(t, first, s, "none other is left")
}

func TestN02_ReleaseTwiceDoesNotGiveTheSlotToTwo(t *testing.T) {
	a := newAllocator(t, 2)
	s, err := a.Acquire()
	require.NoError(t, err)
	require.NoError(t, a.Release(s))
	require.ErrorIs(t, a.Release(s), ErrSlotNotHeld)
	x, err := a.Acquire()
	require.NoError(t, err)
	y, err := a.Acquire()
	require.NoError(t, err)
	assert.NotEqual(t, x, y)
}

func TestN06_ClaimAfterARestart(t *testing.T) {
	a := newAllocator(t, 4)
	require.NoError(t, a.Claim(1))
	require.NoError(t, a.Claim(3))
	require.ErrorIs(t, a.Claim(3), ErrSlotInUse)
	var got []Slot
	for range 2 {
		s, err := a.Acquire()
		require.NoError(t, err)
		got = append(got, s)
	}
	assert.Equal(t, []Slot{2, 4}, got)
	require.ErrorIs(t, a.Claim(2), ErrSlotInUse)
	_, err := a.Acquire()
	require.ErrorIs(t, err, ErrNoFreeSlot)
	require.NoError(t, a.Release(3))
	require.NoError(t, a.Claim(3))
}

// The model is a plain list of the free slots, the longest free first.
func FuzzN02_AllocatorAgreesWithAQueue(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 0, 0x42, 0x41, 0, 0, 0, 0, 0})
	f.Add([]byte("acquire, release and claim in any order"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		const count = 9
		a := newAllocator(t, count)
		free := []Slot{1, 2, 3, 4, 5, 6, 7, 8, 9}
		for _, op := range ops {
			s := Slot(op>>2)%count + 1
			at := slices.Index(free, s)
			switch op & 3 {
			case 0, 1:
				got, err := a.Acquire()
				if len(free) == 0 {
					require.ErrorIs(t, err, ErrNoFreeSlot)
					continue
				}
				require.NoError(t, err)
				require.Equal(t, free[0], got)
				free = free[1:]
			case 2:
				err := a.Release(s)
				if at >= 0 {
					require.ErrorIs(t, err, ErrSlotNotHeld)
					continue
				}
				require.NoError(t, err)
				free = append(slices.Clone(free), s)
			case 3:
				err := a.Claim(s)
				if at < 0 {
					require.ErrorIs(t, err, ErrSlotInUse)
					continue
				}
				require.NoError(t, err)
				free = slices.Delete(slices.Clone(free), at, at+1)
			}
			require.Equal(t, count-len(free), a.Held())
		}
	})
}

// TestN02_NoSlotIsHeldTwiceAtOnce has acquirers, claimers and releasers at once, and then counts: whatever
// they did, each slot is free exactly once.
func TestN02_NoSlotIsHeldTwiceAtOnce(t *testing.T) {
	const count = 64
	a := newAllocator(t, count)
	var held [count + 1]sync.Mutex
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 500 {
				acquire := a.Acquire
				if i%3 == 0 {
					s := Slot((worker*31+i*7)%count + 1)
					acquire = func() (Slot, error) { return s, a.Claim(s) }
				}
				s, err := acquire()
				if errors.Is(err, ErrSlotInUse) || errors.Is(err, ErrNoFreeSlot) {
					continue
				}
				if !assert.NoError(t, err) || !assert.True(t, held[s].TryLock(), "slot %d has two holders", s) {
					return
				}
				runtime.Gosched()
				held[s].Unlock()
				assert.NoError(t, a.Release(s))
			}
		})
	}
	wg.Wait()
	require.Zero(t, a.Held())
	seen := map[Slot]bool{}
	for range count {
		s, err := a.Acquire()
		require.NoError(t, err)
		require.False(t, seen[s], "slot %d is free twice", s)
		seen[s] = true
	}
	_, err := a.Acquire()
	require.ErrorIs(t, err, ErrNoFreeSlot)
}

func BenchmarkN02_AcquireRelease(b *testing.B) {
	for _, used := range []int{0, 1000, 32766} {
		b.Run("used="+map[int]string{0: "0", 1000: "1000", 32766: "32766"}[used], func(b *testing.B) {
			a := newAllocator(b, MaxSlot)
			for range used {
				_, err := a.Acquire()
				require.NoError(b, err)
			}
			for b.Loop() {
				s, err := a.Acquire()
				if err != nil {
					b.Fatal(err)
				}
				if err := a.Release(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
