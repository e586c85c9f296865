package sandbox

import (
	"context"
	"errors"
	"sync"
	"time"
)

// teardownRetry is the pause before a teardown that left something is tried again by itself: long
// enough for a busy object to come free, short enough that a leak does not last.
const teardownRetry = 30 * time.Second

// owned is a sandbox and the channels to the goroutine that owns it. The fields below machine belong
// to that goroutine alone; now is a published copy behind mu.
type owned struct {
	token   string
	env     map[string]string
	policy  NetworkPolicy
	tmpl    Template
	timeout time.Duration

	mu  sync.Mutex
	now Info

	machine Machine
	hasDisk bool

	aborted   context.Context // ends when the create is no longer wanted
	abort     context.CancelFunc
	created   chan struct{} // closed when the create has succeeded or failed with createErr
	createErr error

	destroys  chan chan error
	deadlines chan deadlineChange
	rules     chan rulesChange
	leave     chan struct{} // closed when the owner shall go and the machine shall stay
	leaveOnce sync.Once
	gone      chan struct{} // closed when nothing of the sandbox is left and its owner has ended
	left      chan struct{} // closed when the owner has ended, whatever it left
}

type deadlineChange struct {
	timeout    time.Duration
	extendOnly bool
	reply      chan<- deadlineReply
}

type deadlineReply struct {
	deadline time.Time
	err      error
}

func newOwned(req CreateRequest, tmpl Template) *owned {
	s := emptyOwned()
	s.token, s.env, s.tmpl, s.timeout = req.AccessToken, req.EnvVars, tmpl, req.Timeout
	now := time.Now()
	s.now = Info{
		ID: req.ID, Template: tmpl.Name, State: Creating, StartedAt: now, Deadline: now.Add(req.Timeout),
		VCPUs: orDefault(req.VCPUs, tmpl.VCPUs), MemoryMiB: orDefault(req.MemoryMiB, tmpl.MemoryMiB),
		DiskMiB: tmpl.DiskMiB, BootPath: Cold, Metadata: req.Metadata,
		Network: req.rules().Clone(),
	}
	return s
}

func emptyOwned() *owned {
	s := &owned{
		created: make(chan struct{}), destroys: make(chan chan error), deadlines: make(chan deadlineChange), rules: make(chan rulesChange),
		leave: make(chan struct{}), gone: make(chan struct{}), left: make(chan struct{}),
	}
	s.aborted, s.abort = context.WithCancel(context.Background())
	return s
}

func orDefault(asked, otherwise int) int {
	if asked == 0 {
		return otherwise
	}
	return asked
}

func (s *owned) info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.clone()
}

func (s *owned) update(change func(*Info)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.now)
}

// become makes a move of the transition table; one that the table does not have is a defect.
func (s *owned) become(next State) {
	s.update(func(i *Info) {
		if !i.State.CanBecome(next) && i.State != next {
			panic("sandbox " + i.ID + ": no transition from " + string(i.State) + " to " + string(next))
		}
		i.State = next
	})
}

// memoryCost is what the sandbox takes of the host's memory in MiB.
func (s *owned) memoryCost() int {
	i := s.info()
	if i.State == Failed || i.State == Gone {
		return 0
	}
	return i.MemoryMiB + vmmOverheadMiB
}

func (s *owned) destroy(ctx context.Context) error {
	s.abort()
	reply := make(chan error, 1)
	select {
	case s.destroys <- reply:
	case <-s.gone:
		return nil
	case <-s.left:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *owned) setDeadline(ctx context.Context, timeout time.Duration, extendOnly bool) (time.Time, error) {
	if i := s.info(); i.State != Running {
		return time.Time{}, i.State.conflict(i.ID, "given a new deadline")
	}
	reply := make(chan deadlineReply, 1)
	select {
	case s.deadlines <- deadlineChange{timeout: timeout, extendOnly: extendOnly, reply: reply}:
		r := <-reply
		return r.deadline, r.err
	case <-s.gone:
		return time.Time{}, errors.Join(ErrNotFound, Gone.conflict(s.now.ID, "given a new deadline"))
	case <-s.left:
		return time.Time{}, ErrClosed
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
}

func (s *owned) letGo() {
	s.abort()
	s.leaveOnce.Do(func() { close(s.leave) })
}

// own is the goroutine of one sandbox: it creates it if asked to, then waits for what ends it.
func (m *Manager) own(s *owned, create bool) {
	defer close(s.left)
	if create && m.createOrEnd(s) {
		return
	}
	reap := time.NewTimer(s.untilReaped())
	defer reap.Stop()
	for {
		select {
		case reply := <-s.destroys:
			err := m.end(s)
			reply <- err
			if err == nil {
				return
			}
			reap.Reset(teardownRetry)
		case c := <-s.deadlines:
			m.changeDeadline(s, c, reap)
		case c := <-s.rules:
			c.reply <- m.changeRules(s, c)
		case <-reap.C:
			m.cfg.Logger.Info("sandbox is reaped", "sandbox", s.now.ID, "deadline", s.now.Deadline)
			if m.end(s) == nil {
				return
			}
			reap.Reset(teardownRetry)
		case <-s.machineDone():
			m.fail(s, s.machine.Exit())
		case <-s.leave:
			return
		}
	}
}

// createOrEnd creates the sandbox, or takes down what a failed create left; true when that is all.
func (m *Manager) createOrEnd(s *owned) bool {
	defer close(s.created)
	s.createErr = m.create(s)
	return s.createErr != nil && m.end(s) == nil
}

// untilReaped is the time to the sandbox's deadline, or to the next try of a teardown that failed.
func (s *owned) untilReaped() time.Duration {
	if s.now.State == Destroying {
		return teardownRetry
	}
	return time.Until(s.now.Deadline)
}

// machineDone is closed when the machine of a running sandbox ends; in every other state its end is
// dealt with by whoever brought the state about, and the nil channel blocks for ever.
func (s *owned) machineDone() <-chan struct{} {
	if s.machine == nil || s.now.State != Running {
		return nil
	}
	return s.machine.Done()
}

func (m *Manager) changeDeadline(s *owned, c deadlineChange, reap *time.Timer) {
	i := s.info()
	if i.State != Running {
		c.reply <- deadlineReply{err: i.State.conflict(i.ID, "given a new deadline")}
		return
	}
	deadline := time.Now().Add(c.timeout)
	if c.extendOnly && deadline.Before(i.Deadline) {
		c.reply <- deadlineReply{deadline: i.Deadline}
		return
	}
	s.update(func(i *Info) { i.Deadline = deadline })
	if err := m.writeJournal(s); err != nil {
		s.update(func(now *Info) { now.Deadline = i.Deadline })
		c.reply <- deadlineReply{err: err}
		return
	}
	reap.Reset(time.Until(deadline))
	c.reply <- deadlineReply{deadline: deadline}
}
