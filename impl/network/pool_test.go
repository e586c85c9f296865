package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pooled is a Pool on a kernel in memory, in a bubble whose clock is the test's.
type pooled struct {
	*Pool
	*kernel
	log bytes.Buffer
}

func inBubble(t *testing.T, ready, limit int, test func(t *testing.T, p *pooled)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &pooled{kernel: newKernel()}
		pool, err := NewPool(PoolConfig{
			Maker: p.kernel, Slots: newAllocator(t, MaxSlot), Ready: ready, Limit: limit,
			Logger: slog.New(slog.NewTextHandler(&p.log, nil)),
		})
		require.NoError(t, err)
		p.Pool = pool
		test(t, p)
		require.NoError(t, p.Close(context.WithoutCancel(t.Context())))
		require.NoError(t, p.Close(context.WithoutCancel(t.Context())), "twice")
		assert.Equal(t, len(p.now()), p.used, "slots without networks, or the other way round")
		assert.Equal(t, p.used, p.cfg.Slots.Held())
		assert.NotContains(t, fmt.Sprint(p.now()), "closed", "a ready network outlived the pool")
	})
}

func (p *pooled) begin(t *testing.T) { t.Helper(); p.Start(); synctest.Wait(); p.acts() }

func (p *pooled) reserve(t *testing.T) Slot {
	t.Helper()
	slot, err := p.Reserve()
	require.NoError(t, err)
	return slot
}

func (p *pooled) end(t *testing.T, slot Slot) {
	t.Helper()
	require.NoError(t, p.Remove(t.Context(), slot))
	require.NoError(t, p.Free(slot))
}

func TestN02_ACreateTakesAReadyNetworkByItsPolicyAlone(t *testing.T) {
	inBubble(t, 3, 0, func(t *testing.T, p *pooled) {
		assert.Empty(t, p.now(), "not before it is started")
		p.begin(t)
		p.Start()
		synctest.Wait()
		require.Equal(t, map[Slot]string{1: "closed", 2: "closed", 3: "closed"}, p.now())
		assert.Equal(t, []Slot{1, 2, 3}, p.Ready())
		slot := p.reserve(t)
		assert.Equal(t, Slot(1), slot, "the oldest first")
		require.NoError(t, p.Create(t.Context(), slot, Policy{AllowInternet: true}))
		time.Sleep(calm - time.Millisecond)
		synctest.Wait()
		assert.Equal(t, []string{"hand over 1"}, p.acts(), "nothing takes a processor from a sandbox that starts")
		assert.Equal(t, fmt.Sprint(Policy{AllowInternet: true}), p.now()[1])
		time.Sleep(time.Millisecond)
		synctest.Wait()
		assert.Equal(t, []string{"ready 4"}, p.acts())
		assert.Equal(t, []Slot{2, 3, 4}, p.Ready())
		p.end(t, slot)
		synctest.Wait()
		assert.Equal(t, []string{"remove 1"}, p.acts())
	})
}

// TestN02_ABurstDoesNotWaitForCalm: with none left, the next create would have to make its own.
func TestN02_ABurstDoesNotWaitForCalm(t *testing.T) {
	inBubble(t, 2, 0, func(t *testing.T, p *pooled) {
		p.begin(t)
		for range 2 {
			slot := p.reserve(t)
			require.NoError(t, p.Create(t.Context(), slot, Policy{}))
			defer p.end(t, slot)
		}
		synctest.Wait()
		assert.Equal(t, []string{"hand over 1", "hand over 2", "ready 3"}, p.acts())
		time.Sleep(calm)
		synctest.Wait()
		assert.Equal(t, []string{"ready 4"}, p.acts())
	})
}

func TestN02_WithoutReadyNetworksEachIsMadeWhenNeeded(t *testing.T) {
	inBubble(t, 0, 0, func(t *testing.T, p *pooled) {
		p.begin(t)
		require.NoError(t, p.Create(t.Context(), p.reserve(t), Policy{}))
		assert.Equal(t, []string{"create 1"}, p.acts())
		p.end(t, 1)
	})
}

func TestN02_AReservedNetworkThatIsNotCreatedIsRemoved(t *testing.T) {
	inBubble(t, 1, 0, func(t *testing.T, p *pooled) {
		p.begin(t)
		p.end(t, p.reserve(t))
		assert.Contains(t, p.acts(), "remove 1")
		require.NoError(t, p.cfg.Slots.Claim(1))
		require.NoError(t, p.cfg.Slots.Release(1))
	})
}

func TestN04_ANetworkThatFailsTheHandOverIsReplaced(t *testing.T) {
	inBubble(t, 1, 0, func(t *testing.T, p *pooled) {
		p.begin(t)
		slot := p.reserve(t)
		synctest.Wait()
		p.acts()
		p.set("hand over", errors.New("boom"))
		require.NoError(t, p.Create(t.Context(), slot, Policy{AllowInternet: true}))
		assert.Equal(t, []string{"hand over 1", "remove 1", "create 1"}, p.acts())
		assert.Contains(t, p.log.String(), "boom")
		// Made anew, it is like any other: its removal is not the pool's.
		p.set("hand over", nil)
		p.set("create", errors.New("no more"))
		second := p.reserve(t)
		p.set("hand over", errors.New("boom"))
		require.ErrorContains(t, p.Create(t.Context(), second, Policy{}), "no more")
		p.end(t, second)
		p.end(t, slot)
	})
}

func TestN01_TheLastSlotsAreTheCreates(t *testing.T) {
	inBubble(t, 5, 3, func(t *testing.T, p *pooled) {
		p.begin(t)
		require.Len(t, p.Ready(), 3, "more ready networks than slots")
		var slots []Slot
		for range 3 {
			slots = append(slots, p.reserve(t))
		}
		_, err := p.Reserve()
		require.ErrorIs(t, err, ErrNoFreeSlot)
		require.ErrorContains(t, err, "no free slot: all 3 are in use")
		for _, s := range slots {
			require.NoError(t, p.Create(t.Context(), s, Policy{}))
		}
		synctest.Wait()
		assert.Empty(t, p.Ready())
		assert.Empty(t, p.log.String(), "that all slots are in use is no fault")
		p.end(t, slots[1])
		synctest.Wait()
		assert.Len(t, p.Ready(), 1, "what is freed is made ready")
		slots[1] = p.reserve(t)
		for _, s := range slots {
			p.end(t, s)
		}
	})
}

func TestN01_ANetworkInTheMakingIsTakenWhenNoOtherIsLeft(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		inBubble(t, 1, 1, func(t *testing.T, p *pooled) {
			p.takes = time.Minute
			p.Start()
			time.Sleep(time.Second)
			slot := p.reserve(t)
			if cancelled {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				require.ErrorIs(t, p.Create(ctx, slot, Policy{}), context.DeadlineExceeded)
				p.end(t, slot)
				assert.Equal(t, []string{"ready 1", "remove 1"}, p.acts(), "it was removed while it was being made")
				return
			}
			require.NoError(t, p.Create(t.Context(), slot, Policy{}))
			assert.Equal(t, []string{"ready 1", "hand over 1"}, p.acts())
			p.end(t, slot)
		})
	}
}

func TestN02_FillingYieldsToCreates(t *testing.T) {
	inBubble(t, 4, 0, func(t *testing.T, p *pooled) {
		slow := p.reserve(t)
		p.takes = time.Hour
		done := make(chan error, 1)
		go func() { done <- p.Create(t.Context(), slow, Policy{}) }()
		synctest.Wait()
		p.Start()
		time.Sleep(time.Minute)
		assert.Equal(t, 1, p.beingMade(), "it makes a network beside a create")
		require.NoError(t, <-done)
		synctest.Wait()
		assert.Equal(t, 1, p.beingMade(), "it makes one at a time, and none is needed")
		p.end(t, slow)
	})
}

func TestN02_ErrorsInFillingBackOffAndAreLoggedOnce(t *testing.T) {
	inBubble(t, 2, 0, func(t *testing.T, p *pooled) {
		p.set("ready", errors.New("boom"))
		p.Start()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.GreaterOrEqual(t, len(p.pauses()), 8)
		assert.Equal(t, []float64{1, 2, 4, 8, 16, 32, 60, 60}, p.pauses()[:8])
		assert.Equal(t, 1, strings.Count(p.log.String(), "boom"))
		assert.Zero(t, p.cfg.Slots.Held())
		require.NoError(t, p.Create(t.Context(), p.reserve(t), Policy{}), "creates make their own")
		p.set("ready", nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		assert.Len(t, p.Ready(), 2)
		assert.Equal(t, 1, strings.Count(p.log.String(), "need again"), p.log.String())
		for slot, is := range p.now() {
			if is != "closed" {
				p.end(t, slot)
			}
		}
	})
}

func TestN05_WhatThePoolCannotRemoveKeepsItsSlot(t *testing.T) {
	inBubble(t, 1, 0, func(t *testing.T, p *pooled) {
		p.begin(t)
		p.set("remove", errors.New("busy"))
		require.ErrorContains(t, p.Close(t.Context()), "busy")
		assert.Equal(t, 1, p.cfg.Slots.Held())
		p.networks[1] = "left" // for the checks at the end
	})
}

func TestN06_ClaimedSlotsCountAndAreNeverRefused(t *testing.T) {
	inBubble(t, 0, 2, func(t *testing.T, p *pooled) {
		for _, s := range []Slot{1, 7, 9} {
			require.NoError(t, p.Claim(s))
			require.NoError(t, p.CreateNetwork(t.Context(), s, Policy{}))
		}
		require.ErrorIs(t, p.Claim(7), ErrSlotInUse)
		_, err := p.Reserve()
		require.ErrorIs(t, err, ErrNoFreeSlot)
		p.end(t, 7)
		_, err = p.Reserve()
		require.ErrorIs(t, err, ErrNoFreeSlot)
		p.end(t, 9)
		p.end(t, p.reserve(t))
		require.ErrorIs(t, p.Free(9), ErrSlotNotHeld)
	})
}

// TestN02_NoNetworkHasTwoOwners is for the race detector, on the real clock.
func TestN02_NoNetworkHasTwoOwners(t *testing.T) {
	k := newKernel()
	pool, err := NewPool(PoolConfig{Maker: k, Slots: newAllocator(t, MaxSlot), Logger: slog.New(slog.DiscardHandler), Ready: 3, Limit: 8})
	require.NoError(t, err)
	pool.Start()
	var owners [MaxSlot + 1]sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				slot, err := pool.Reserve()
				if errors.Is(err, ErrNoFreeSlot) {
					continue
				}
				if !assert.NoError(t, err) || !assert.True(t, owners[slot].TryLock(), "slot %d has two owners", slot) {
					return
				}
				if i%5 != 0 {
					assert.NoError(t, pool.Create(t.Context(), slot, Policy{AllowInternet: true}))
				}
				assert.NoError(t, pool.Remove(t.Context(), slot))
				owners[slot].Unlock()
				assert.NoError(t, pool.Free(slot))
			}
		})
	}
	wg.Wait()
	require.NoError(t, pool.Close(context.WithoutCancel(t.Context())))
	assert.Empty(t, k.now())
	assert.Zero(t, pool.cfg.Slots.Held())
}

func TestNewPoolRefusesWhatCannotWork(t *testing.T) {
	good := PoolConfig{Maker: newKernel(), Slots: newAllocator(t, 1), Logger: slog.New(slog.DiscardHandler)}
	_, err := NewPool(good)
	require.NoError(t, err)
	for name, spoil := range map[string]func(*PoolConfig){
		"no maker":       func(c *PoolConfig) { c.Maker = nil },
		"no slots":       func(c *PoolConfig) { c.Slots = nil },
		"no logger":      func(c *PoolConfig) { c.Logger = nil },
		"less than none": func(c *PoolConfig) { c.Ready = -1 },
		"too many slots": func(c *PoolConfig) { c.Limit = 32768 },
	} {
		cfg := good
		spoil(&cfg)
		_, err := NewPool(cfg)
		assert.Error(t, err, name)
	}
}
