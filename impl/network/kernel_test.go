package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
)

// kernel is a Maker in memory: what a network lets through by slot, and how long making one takes.
type kernel struct {
	mu       sync.Mutex
	networks map[Slot]string
	making   int
	takes    time.Duration
	fail     map[string]error
	done     []string
	tries    []time.Time
}

func newKernel() *kernel { return &kernel{networks: map[Slot]string{}, fail: map[string]error{}} }

func (k *kernel) act(ctx context.Context, name string, slot Slot, change func() error) error {
	k.mu.Lock()
	k.making++
	k.mu.Unlock()
	time.Sleep(k.takes)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.making--
	k.done = append(k.done, fmt.Sprintf("%s %d", name, slot))
	if name == "ready" {
		k.tries = append(k.tries, time.Now())
	}
	return errors.Join(ctx.Err(), k.fail[name], change())
}

func (k *kernel) make(slot Slot, as, act string) func() error {
	return func() error {
		if was, ok := k.networks[slot]; ok {
			return fmt.Errorf("slot %d is %s", slot, was)
		}
		if k.fail[act] == nil {
			k.networks[slot] = as
		}
		return nil
	}
}

func (k *kernel) CreateReady(ctx context.Context, slot Slot) error {
	return k.act(ctx, "ready", slot, k.make(slot, "closed", "ready"))
}

func (k *kernel) CreateNetwork(ctx context.Context, slot Slot, policy Policy) error {
	return k.act(ctx, "create", slot, k.make(slot, fmt.Sprint(policy), "create"))
}

func (k *kernel) HandOver(ctx context.Context, slot Slot, policy Policy) error {
	return k.act(ctx, "hand over", slot, func() error {
		if k.networks[slot] != "closed" {
			return fmt.Errorf("slot %d is %q", slot, k.networks[slot])
		}
		k.networks[slot] = fmt.Sprint(policy)
		return nil
	})
}

func (k *kernel) RemoveNetwork(ctx context.Context, slot Slot) error {
	return k.act(ctx, "remove", slot, func() error {
		if k.fail["remove"] == nil {
			delete(k.networks, slot)
		}
		return nil
	})
}

func (k *kernel) set(act string, err error) { k.mu.Lock(); defer k.mu.Unlock(); k.fail[act] = err }

func (k *kernel) now() map[Slot]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.networks)
}

func (k *kernel) beingMade() int { k.mu.Lock(); defer k.mu.Unlock(); return k.making }

// pauses are the times between tries to make a ready network, in seconds.
func (k *kernel) pauses() []float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	var seconds []float64
	for i := 1; i < len(k.tries); i++ {
		seconds = append(seconds, k.tries[i].Sub(k.tries[i-1]).Seconds())
	}
	return seconds
}

// acts returns what was done since it was last asked.
func (k *kernel) acts() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	done := k.done
	k.done = nil
	return done
}
