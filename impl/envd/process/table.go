package process

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// remember is how long the end of a process can still be read by a late Attach.
	remember = 30 * time.Second
	// DefaultPatience is how long a reader with a full queue may take nothing before it is cut off: long
	// enough for a disk's flush at the other end of `tar`.
	DefaultPatience = 5 * time.Second
	// terminalPatience bounds that for terminals: people watch the other viewers' screens, and one that
	// was cut off gets the latest output again when it attaches.
	terminalPatience = time.Second
)

// Table is every process of the daemon. It is safe for concurrent use.
type Table struct {
	log      *slog.Logger
	patience time.Duration
	oom      *oomScore
	group    Group

	mu   sync.Mutex
	live []*Process // in the order of their start
	gone []*Process // in the order of their end, at most remember ago
}

// Group is what the users' processes are started in, so that all of them can be stopped together.
type Group interface {
	// Join lets a process that is to be started with attr be born in the group.
	Join(attr *syscall.SysProcAttr)
}

// NewTable makes an empty table whose processes join group. patience is DefaultPatience where zero. With protected, the daemon is
// exempted from the kernel's out-of-memory killer (its processes are not), which needs root.
func NewTable(log *slog.Logger, patience time.Duration, protected bool, group Group) *Table {
	if patience == 0 {
		patience = DefaultPatience
	}
	t := &Table{log: log, patience: patience, group: group}
	if protected {
		oom, err := protect()
		if err != nil {
			log.Warn("run without out-of-memory protection", "error", err)
		}
		t.oom = oom
	}
	return t
}

// Start runs spec and subscribes to it. Errors wrap ErrCommand where the request is at fault.
func (t *Table) Start(spec Spec) (*Process, *Subscription, error) {
	patience := t.patience
	if spec.Terminal != nil {
		patience = min(patience, terminalPatience)
	}
	p, sub, err := start(spec, patience, t.oom, t.group)
	if err != nil {
		return nil, nil, err
	}
	t.mu.Lock()
	t.live = append(t.live, p)
	t.mu.Unlock()
	t.log.Debug("process started", "pid", p.PID, "cmd", spec.Cmd, "user", spec.User.Name)
	go t.retire(p)
	return p, sub, nil
}

// retire moves p to the ended ones at its end and forgets it later.
func (t *Table) retire(p *Process) {
	<-p.ended
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live = without(t.live, p)
	t.gone = append(t.gone, p)
	time.AfterFunc(remember, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.gone = without(t.gone, p)
	})
	t.log.Debug("process ended", "pid", p.PID)
}

// Selector names a process: by Tag where that is not nil, else by PID. Of several with one tag the
// newest is meant.
type Selector struct {
	PID int
	Tag *string
}

func (s Selector) String() string {
	if s.Tag != nil {
		return fmt.Sprintf("with tag %q", *s.Tag)
	}
	return fmt.Sprintf("with pid %d", s.PID)
}

func (s Selector) matches(p *Process) bool {
	if s.Tag != nil {
		return p.Spec.Tag != nil && *p.Spec.Tag == *s.Tag
	}
	return p.PID == s.PID
}

// Find returns the running process that sel names, or ErrNotFound.
func (t *Table) Find(sel Selector) (*Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range slices.Backward(t.live) {
		if sel.matches(p) {
			return p, nil
		}
	}
	return nil, fmt.Errorf("process %s: %w", sel, ErrNotFound)
}

// Attach subscribes to the process that sel names, running or ended at most 30 s ago.
func (t *Table) Attach(sel Selector) (*Process, *Subscription, error) {
	if p, err := t.Find(sel); err == nil {
		return p, p.fan.subscribe(), nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range slices.Backward(t.gone) {
		if sel.matches(p) {
			return p, p.fan.subscribe(), nil
		}
	}
	return nil, nil, fmt.Errorf("process %s: %w", sel, ErrNotFound)
}

// List returns the running processes by pid.
func (t *Table) List() []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := slices.Clone(t.live)
	slices.SortFunc(out, func(a, b *Process) int { return cmp.Compare(a.PID, b.PID) })
	return out
}

// Close kills every process group and waits, at most for wait each, for their ends to be reported.
func (t *Table) Close(wait time.Duration) {
	for _, p := range t.List() {
		_ = p.signal(unix.SIGKILL)
		select {
		case <-p.ended:
		case <-time.After(wait):
			t.log.Warn("process outlives the daemon", "pid", p.PID)
		}
	}
}

func without(list []*Process, p *Process) []*Process {
	return slices.DeleteFunc(list, func(q *Process) bool { return q == p })
}
