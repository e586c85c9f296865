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
	"time"
)

// UndoTimeout bounds all undos of one list together. A netlink call or an iptables run takes
// milliseconds; ten seconds cover a host that is swapping or waits for the iptables lock (5 s).
const UndoTimeout = 10 * time.Second

// Step is one part of an act.
type Step struct {
	// Name is unique in its list, lower case, a few letters: "veth", "nat-in".
	Name string
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

// Run performs the steps of act in order and returns the time of each that was tried. On the first
// error it undoes the failed step and all before it, newest first, and returns an error that names act
// and step and joins the errors of the undos.
func Run(ctx context.Context, act string, steps []Step) ([]Timing, error) {
	timings := make([]Timing, 0, len(steps))
	for i, s := range steps {
		start := time.Now()
		err := do(ctx, act, s)
		timings = append(timings, Timing{Name: s.Name, Duration: time.Since(start)})
		if err != nil {
			return timings, errors.Join(fmt.Errorf("%s: step %s: %w", act, s.Name, err), undo(ctx, act, steps[:i+1]))
		}
	}
	return timings, nil
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
