package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// DefaultReady is how many networks are kept ready. One is made again in some 10 ms, far less than a guest
// needs to boot, so four cover a burst of creates at once; each costs the kernel about half a MiB.
const DefaultReady = 4

// The pauses between tries after a ready network could not be made: twice as long each time.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// calm is for how long after a create no network is made ahead, while any is ready: making one takes a processor for
// some 10 ms, just when the sandbox of that create starts its VMM and its guest wakes up, which takes 100 to 300 ms.
const calm = 300 * time.Millisecond

// Maker makes and removes networks: a Host.
type Maker interface {
	CreateReady(ctx context.Context, slot Slot) error
	HandOver(ctx context.Context, slot Slot, policy Policy) error
	CreateNetwork(ctx context.Context, slot Slot, policy Policy) error
	RemoveNetwork(ctx context.Context, slot Slot) error
}

// PoolConfig is what a Pool is made of. Maker, Slots and Logger are required.
type PoolConfig struct {
	Maker  Maker
	Slots  *Allocator
	Logger *slog.Logger
	// Ready is how many networks are kept ready; 0 keeps none.
	Ready int
	// Limit is how many slots may be in use at once, ready ones included; 0 means all that there are. Slots
	// that are claimed count, but are never refused.
	Limit int
}

// Pool hands out slots with their networks, some of which it has made ahead of need: a create then only has
// to put its policy in. It may be used concurrently, but not two calls for one slot.
//
// Ready networks hold their slots like any other, so nothing else takes them, and when no other slot is
// free a create gets theirs. After a crash they are what the networks of lost sandboxes are: stale.
type Pool struct {
	cfg    PoolConfig
	ctx    context.Context
	cancel context.CancelFunc
	filler sync.WaitGroup
	kick   chan struct{}

	mu       sync.Mutex
	ready    []*readyNetwork        // not taken, the oldest first; the last may still be in the making
	taken    map[Slot]*readyNetwork // reserved, but neither created nor removed since
	used     int                    // slots of sandboxes and of ready networks
	creating int
	busy     time.Time // when a ready network was last taken, or a create last ended
	started  bool
	closed   bool
}

// readyNetwork is made, or could not be, once made is closed.
type readyNetwork struct {
	slot Slot
	made chan struct{}
	err  error
}

// NewPool returns a Pool without ready networks; Start makes them.
func NewPool(cfg PoolConfig) (*Pool, error) {
	if cfg.Maker == nil || cfg.Slots == nil || cfg.Logger == nil {
		return nil, errors.New("network: a pool needs a maker, slots and a logger")
	}
	if cfg.Ready < 0 || cfg.Limit < 0 || cfg.Limit > int(MaxSlot) {
		return nil, fmt.Errorf("network: a pool of %d ready networks among %d slots: there are 0 to %d", cfg.Ready, cfg.Limit, MaxSlot)
	}
	if cfg.Limit == 0 {
		cfg.Limit = int(MaxSlot)
	}
	p := &Pool{cfg: cfg, kick: make(chan struct{}, 1), taken: map[Slot]*readyNetwork{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Start begins to make ready networks in the background, and does nothing when it was called before.
func (p *Pool) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.closed || p.cfg.Ready == 0 {
		return
	}
	p.started = true
	p.filler.Go(p.fill)
}

// Close stops the making and removes the ready networks. What could not be removed keeps its slot.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	left := p.ready
	p.ready = nil
	p.mu.Unlock()
	p.cancel()
	p.filler.Wait()
	var errs []error
	for _, r := range left {
		errs = append(errs, p.discard(ctx, r.slot))
	}
	return errors.Join(errs...)
}

// Reserve takes a slot, one whose network is ready if there is any, and otherwise the one that has rested
// the longest; the error wraps ErrNoFreeSlot. It takes no system call.
func (p *Pool) Reserve() (Slot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) > 0 && p.ready[0].isMade() {
		return p.takeReady(), nil
	}
	slot, err := p.acquire()
	if errors.Is(err, ErrNoFreeSlot) && len(p.ready) > 0 {
		return p.takeReady(), nil // it will be made before its create needs it, or at once after
	}
	return slot, err
}

// Claim takes the slot of a sandbox that was found alive; see Allocator.Claim.
func (p *Pool) Claim(slot Slot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cfg.Slots.Claim(slot); err != nil {
		return err
	}
	p.used++
	return nil
}

// Free gives a slot back whose network was removed; see Allocator.Release.
func (p *Pool) Free(slot Slot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cfg.Slots.Release(slot); err != nil {
		return err
	}
	p.used--
	p.wake()
	return nil
}

// Create makes the network of a reserved slot, or gives the ready one its policy. A ready one that fails at
// that is replaced. The making of ready networks waits meanwhile.
func (p *Pool) Create(ctx context.Context, slot Slot, policy Policy) error {
	p.mu.Lock()
	p.creating++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.creating--
		p.busy = time.Now()
		p.wake()
	}()
	r, err := p.await(ctx, slot)
	if err != nil {
		return fmt.Errorf("waiting for the ready network of slot %d: %w", slot, err)
	}
	if r == nil {
		return p.cfg.Maker.CreateNetwork(ctx, slot, policy)
	}
	err = r.err
	if err == nil {
		if err = p.cfg.Maker.HandOver(ctx, slot, policy); err == nil {
			return nil
		}
	}
	p.cfg.Logger.WarnContext(ctx, "a ready network could not be used and is made anew", "slot", int(slot), "error", err)
	if err := p.cfg.Maker.RemoveNetwork(ctx, slot); err != nil {
		return err
	}
	return p.cfg.Maker.CreateNetwork(ctx, slot, policy)
}

// Remove removes the network of a slot that is not free, whether or not it was created since the slot was
// reserved.
func (p *Pool) Remove(ctx context.Context, slot Slot) error {
	if _, err := p.await(ctx, slot); err != nil {
		return fmt.Errorf("waiting for the ready network of slot %d: %w", slot, err)
	}
	return p.cfg.Maker.RemoveNetwork(ctx, slot)
}

// Ready lists the slots whose networks are ready, or about to be.
func (p *Pool) Ready() []Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	slots := make([]Slot, 0, len(p.ready))
	for _, r := range p.ready {
		slots = append(slots, r.slot)
	}
	return slots
}

// await returns the ready network that came with a reserved slot once it is made, and forgets it; nil when
// the slot came without one.
func (p *Pool) await(ctx context.Context, slot Slot) (*readyNetwork, error) {
	p.mu.Lock()
	r := p.taken[slot]
	p.mu.Unlock()
	if r == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	select {
	case <-r.made:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	p.mu.Lock()
	delete(p.taken, slot)
	p.mu.Unlock()
	return r, nil
}

// fill is the goroutine that makes ready networks, one at a time. A failure is logged when it is the first
// in a row.
func (p *Pool) fill() {
	pause := time.Duration(0)
	for {
		r := p.begin()
		if r == nil {
			select {
			case <-p.kick:
				continue
			case <-p.ctx.Done():
				return
			}
		}
		r.err = p.cfg.Maker.CreateReady(p.ctx, r.slot)
		close(r.made)
		if p.settle(r) {
			if pause > 0 {
				p.cfg.Logger.Info("networks are made ahead of need again")
			}
			pause = 0
			continue
		}
		if p.ctx.Err() != nil {
			return
		}
		if pause == 0 {
			p.cfg.Logger.Warn("cannot make networks ahead of need; trying again, creates make their own meanwhile", "error", r.err)
		}
		pause = min(max(2*pause, firstPause), lastPause)
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
			return
		}
	}
}

// begin enters a network that is to be made; nil when none is wanted, or none now.
func (p *Pool) begin() *readyNetwork {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.creating > 0 || len(p.ready) >= p.cfg.Ready {
		return nil
	}
	if left := calm - time.Since(p.busy); left > 0 && len(p.ready) > 0 {
		time.AfterFunc(left, p.wake)
		return nil
	}
	slot, err := p.acquire()
	if err != nil {
		return nil // all are in use; the next that is freed wakes us
	}
	r := &readyNetwork{slot: slot, made: make(chan struct{})}
	p.ready = append(p.ready, r)
	return r
}

// settle takes out of the pool again what could not be made, unless a create has it, which then sees why;
// false when it could not.
func (p *Pool) settle(r *readyNetwork) bool {
	if r.err == nil {
		return true
	}
	p.mu.Lock()
	before := len(p.ready)
	p.ready = slices.DeleteFunc(p.ready, func(other *readyNetwork) bool { return other == r })
	mine := len(p.ready) < before
	p.mu.Unlock()
	if mine {
		r.err = errors.Join(r.err, p.discard(context.WithoutCancel(p.ctx), r.slot))
	}
	return false
}

// discard removes the network of a slot that no sandbox has, and frees the slot.
func (p *Pool) discard(ctx context.Context, slot Slot) error {
	if err := p.cfg.Maker.RemoveNetwork(ctx, slot); err != nil {
		return err
	}
	return p.Free(slot)
}

// acquire is for holders of the lock.
func (p *Pool) acquire() (Slot, error) {
	if p.used >= p.cfg.Limit {
		return 0, fmt.Errorf("%w: all %d are in use", ErrNoFreeSlot, p.cfg.Limit)
	}
	slot, err := p.cfg.Slots.Acquire()
	if err == nil {
		p.used++
	}
	return slot, err
}

// takeReady is for holders of the lock.
func (p *Pool) takeReady() Slot {
	r := p.ready[0]
	p.ready = p.ready[1:]
	p.taken[r.slot] = r
	p.busy = time.Now()
	p.wake()
	return r.slot
}

// wake makes the filler look again.
func (p *Pool) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func (r *readyNetwork) isMade() bool {
	select {
	case <-r.made:
		return true
	default:
		return false
	}
}
