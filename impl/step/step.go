// Package step runs an act of several parts as a list of named steps, each with its undo.
//
// When a step fails, the undos of it and of those before it run in reverse order on a fresh context
// with a deadline of its own (the caller's may have expired, which may be why the step failed), and
// every error is joined. The names are what an error, a log line, a timing and the fault suite speak
// of.
package step

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// UndoTimeout bounds all undos of one list together. A netlink call or an iptables run takes
// milliseconds; ten seconds cover a host that is swapping or waits for the iptables lock (5 s).
const UndoTimeout = 10 * time.Second

// Step is one part of an act.
type Step struct {
	// Name is unique in its list, lower case, a few letters: "veth", "nat-in".
	Name string
	// Beside lets the step run at the same time as the one before it, and as those which that runs beside.
	// Neither may need what the other does, unless it waits for that itself, and what both touch must bear it. RunAll
	// takes no notice of it.
	Beside bool
	// Do performs the step. A failed Do may have done half of it.
	Do func(context.Context) error
	// Undo takes back what Do did, wholly or by half; it must not fail when there is nothing to take
	// back. Nil means that there never is.
	Undo func(context.Context) error
}

// Timing is how long one step took.
type Timing struct {
	Name     string
	Duration time.Duration
}

// Run performs the steps of act in order, those that stand beside each other at once, and returns the time of each
// that was tried; times of steps at once overlap. On the first error the steps beside it are cancelled and waited
// for; then it undoes them and all before, newest first, and returns an error that names act and step and joins the
// errors of the undos.
func Run(ctx context.Context, act string, steps []Step) ([]Timing, error) {
	timings := make([]Timing, 0, len(steps))
	for from := 0; from < len(steps); {
		to := from + 1
		for to < len(steps) && steps[to].Beside {
			to++
		}
		took, err := together(ctx, act, steps[from:to])
		timings = append(timings, took...)
		if err != nil {
			return timings, errors.Join(err, undo(ctx, act, steps[:to]))
		}
		from = to
	}
	return timings, nil
}

// together performs steps at once and returns when all have ended.
func together(ctx context.Context, act string, steps []Step) ([]Timing, error) {
	timings := make([]Timing, len(steps))
	g := group{}
	ctx, g.cancel = context.WithCancel(ctx)
	defer g.cancel()
	perform := func(i int) {
		start := time.Now()
		err := do(ctx, act, steps[i])
		timings[i] = Timing{Name: steps[i].Name, Duration: time.Since(start)}
		if err != nil {
			g.fail(err, fmt.Errorf("%s: step %s: %w", act, steps[i].Name, err))
		}
	}
	for i := 1; i < len(steps); i++ {
		g.beside.Go(func() {
			ended := false
			defer func() { g.left(ended) }()
			perform(i)
			ended = true
		})
	}
	func() {
		ended := false
		defer func() {
			g.left(ended)
			g.beside.Wait()
		}()
		perform(0)
		ended = true
	}()
	if g.abandoned {
		runtime.Goexit() // as a step that runs alone would
	}
	return timings, errors.Join(g.errs...)
}

// group is steps that run at once.
type group struct {
	cancel context.CancelFunc
	beside sync.WaitGroup

	mu        sync.Mutex
	errs      []error
	abandoned bool
}

// fail ends the others. That they were cancelled is not told beside what has failed.
func (g *group) fail(cause, told error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.errs) == 0 || !errors.Is(cause, context.Canceled) {
		g.errs = append(g.errs, told)
	}
	g.cancel()
}

// left notes how a step's goroutine has left: by runtime.Goexit, if not at its end. Then the others end, too: one may
// wait for what it would have done.
func (g *group) left(ended bool) {
	if ended {
		return
	}
	g.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.abandoned = true
}

// RunAll performs every step of act in order, whatever fails, and joins the errors: the shape of a
// removal. Undos are not used.
func RunAll(ctx context.Context, act string, steps []Step) error {
	var errs []error
	for _, s := range steps {
		if err := do(ctx, act, s); err != nil {
			errs = append(errs, fmt.Errorf("%s: step %s: %w", act, s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Names lists the steps' names in order; the fault suite enumerates its cases with it.
func Names(steps []Step) []string {
	names := make([]string, len(steps))
	for i, s := range steps {
		names[i] = s.Name
	}
	return names
}

// moment is when the fault suite can let something happen to a step.
type moment string

const (
	before moment = "before"
	after  moment = "after"
	undone moment = "undone"
)

func do(ctx context.Context, act string, s Step) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := fault(act, s.Name, before); err != nil {
		return err
	}
	if err := s.Do(ctx); err != nil {
		return err
	}
	return fault(act, s.Name, after)
}

func undo(ctx context.Context, act string, steps []Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoTimeout)
	defer cancel()
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].Undo == nil {
			continue
		}
		err := errors.Join(steps[i].Undo(ctx), fault(act, steps[i].Name, undone))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: undo %s: %w", act, steps[i].Name, err))
		}
	}
	return errors.Join(errs...)
}
