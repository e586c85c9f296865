package sandbox

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"wrenn/impl/snapshot"
)

// teardownRetry is the pause before a teardown that left something is tried again by itself: long
// enough for a busy object to come free, short enough that a leak does not last.
const teardownRetry = 30 * time.Second

// never is the time to something that is not due at all.
const never time.Duration = math.MaxInt64

// owned is a sandbox and the channels to the goroutine that owns it. The fields from machine to merge belong
// to that goroutine alone; now is a published copy behind mu, as is interrupt.
type owned struct {
	token   string
	env     map[string]string
	policy  NetworkPolicy
	tmpl    Template
	timeout time.Duration

	mu  sync.Mutex
	now Info
	// interrupt ends the act under way, if there is one; ending counts the destroys that wait for it.
	interrupt context.CancelCauseFunc
	ending    int

	machine Machine
	hasDisk bool
	// source is the manifest of the snapshot that a create starts from.
	source snapshot.Manifest
	// lineage is the ID of the snapshot that the machine was last restored from or written into.
	lineage string
	// legacy machines were started by an agent that knew no snapshots, and cannot be written into one.
	legacy bool
	// stopped and frozen say that the virtual processors, or the users' processes, may stand still.
	stopped, frozen bool
	// holds says that a paused sandbox may still hold something of the kernel.
	holds bool
	// retryAt is when something that failed is tried again; zero for nothing. late counts the pauses at the
	// deadline that failed.
	retryAt time.Time
	late    int
	merge   *merging
	// merged says that this pause's merge has been begun, or was not needed.
	merged bool

	aborted   context.Context // ends when the create is no longer wanted
	abort     context.CancelFunc
	created   chan struct{} // closed when the create has succeeded or failed with createErr
	createErr error

	destroys  chan chan error
	deadlines chan deadlineChange
	rules     chan rulesChange
	acts      chan func()   // what the owner is asked to do, with the caller's answer in it
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
		Network: req.rules().Clone(), Lifecycle: req.Lifecycle, Snapshot: req.Snapshot,
	}
	if req.DiskMiB != 0 {
		s.now.DiskMiB = req.DiskMiB
	}
	return s
}

func emptyOwned() *owned {
	s := &owned{
		created: make(chan struct{}), destroys: make(chan chan error), deadlines: make(chan deadlineChange), rules: make(chan rulesChange),
		acts:  make(chan func()),
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
	if i.State == Failed || i.State == Gone || i.State == Paused && i.Slot == 0 {
		return 0
	}
	return i.MemoryMiB + vmmOverheadMiB
}

func (s *owned) destroy(ctx context.Context) error {
	s.abort()
	s.giveUp(1)
	defer s.giveUp(-1)
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

// giveUp with 1 ends the act under way, which then takes back what it has done, and keeps others from
// beginning until it is called with -1.
func (s *owned) giveUp(change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending += change
	if s.interrupt != nil && s.ending > 0 {
		s.interrupt(errGivenUp)
	}
}

// errGivenUp is why an act ends that a destroy or the agent's end has cut short.
var errGivenUp = errors.New("it was given up")

// begin is the context of one act: it ends with the caller's, when the act is given up, or after actTimeout.
func (s *owned) begin(ctx context.Context) (act context.Context, end func()) {
	act, interrupt := context.WithCancelCause(context.WithoutCancel(ctx))
	act, cancel := context.WithTimeout(act, actTimeout)
	stop := context.AfterFunc(ctx, func() { interrupt(context.Cause(ctx)) })
	s.mu.Lock()
	if s.interrupt = interrupt; s.ending > 0 {
		interrupt(errGivenUp)
	}
	s.mu.Unlock()
	return act, func() {
		stop()
		s.mu.Lock()
		s.interrupt = nil
		s.mu.Unlock()
		cancel()
		interrupt(nil)
	}
}

// ask lets the owner do something, once it is free, and returns when it is done.
func (s *owned) ask(ctx context.Context, what string, do func()) error {
	done := make(chan struct{})
	select {
	case s.acts <- func() { defer close(done); do() }:
		<-done // it ends with ctx, by begin
		return nil
	case <-s.gone:
		return errors.Join(ErrNotFound, Gone.conflict(s.now.ID, what))
	case <-s.left:
		return ErrClosed
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
	s.leaveOnce.Do(func() { s.giveUp(1); close(s.leave) })
}

// own is the goroutine of one sandbox: it creates it if asked to, then waits for what ends it.
func (m *Manager) own(s *owned, create bool) {
	defer close(s.left)
	defer s.stopMerge()
	if create && m.createOrEnd(s) {
		return
	}
	due := time.NewTimer(never)
	defer due.Stop()
	for {
		m.startMerge(s)
		due.Reset(s.untilDue())
		select {
		case reply := <-s.destroys:
			err := m.end(s)
			reply <- err
			if err == nil {
				return
			}
		case c := <-s.deadlines:
			m.changeDeadline(s, c)
		case c := <-s.rules:
			c.reply <- m.changeRules(s, c)
		case do := <-s.acts:
			do()
		case <-due.C:
			if m.doDue(s) {
				return
			}
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

// untilDue is the time to the next thing that the owner has to do by itself.
func (s *owned) untilDue() time.Duration {
	retry := never
	if !s.retryAt.IsZero() {
		retry = time.Until(s.retryAt)
	}
	switch s.now.State {
	case Running:
		if s.late > 0 {
			return retry // the deadline has passed
		}
		return min(retry, time.Until(s.now.Deadline))
	case Failed:
		return min(retry, time.Until(s.now.Deadline))
	case Paused, Destroying, Pausing:
		return retry
	default:
		return never
	}
}

// doDue does what has come due; true when the sandbox is gone.
func (m *Manager) doDue(s *owned) bool {
	s.retryAt = time.Time{}
	switch late := time.Until(s.now.Deadline) <= 0; {
	case s.now.State == Destroying:
		return m.end(s) == nil
	case s.now.State == Paused:
		_ = m.park(s) // it has logged, and comes due again
	case s.now.State == Pausing || s.stopped:
		m.wake(s)
	case late && s.now.State == Running && s.now.Lifecycle.PauseOnTimeout:
		m.pauseLate(s)
	case late:
		m.cfg.Logger.Info("sandbox is reaped", "sandbox", s.now.ID, "deadline", s.now.Deadline)
		return m.end(s) == nil
	case s.frozen:
		m.wake(s)
	}
	return false
}

// retry lets something that failed come due again.
func (s *owned) retry() { s.retryAt = time.Now().Add(teardownRetry) }

// machineDone is closed when the machine of a running sandbox ends; in every other state its end is
// dealt with by whoever brought the state about, and the nil channel blocks for ever.
func (s *owned) machineDone() <-chan struct{} {
	if s.machine == nil || s.now.State != Running {
		return nil
	}
	return s.machine.Done()
}

func (m *Manager) changeDeadline(s *owned, c deadlineChange) {
	deadline, err := m.moveDeadline(s, c.timeout, c.extendOnly)
	c.reply <- deadlineReply{deadline: deadline, err: err}
}

// moveDeadline runs in the owner.
func (m *Manager) moveDeadline(s *owned, timeout time.Duration, extendOnly bool) (time.Time, error) {
	i := s.info()
	if i.State != Running {
		return time.Time{}, i.State.conflict(i.ID, "given a new deadline")
	}
	deadline := time.Now().Add(timeout)
	if extendOnly && deadline.Before(i.Deadline) {
		return i.Deadline, nil
	}
	s.update(func(i *Info) { i.Deadline = deadline })
	if err := m.writeJournal(s); err != nil {
		s.update(func(now *Info) { now.Deadline = i.Deadline })
		return time.Time{}, err
	}
	s.late = 0
	return deadline, nil
}
