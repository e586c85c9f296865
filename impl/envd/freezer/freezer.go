// Package freezer stops the users' processes of a guest and lets them go on, so that a machine can be written
// away while nothing of theirs runs, and gets its clock and randomness back before anything of theirs does.
//
// They live in a control group of their own, which the kernel freezes as a whole: programs cannot tell, and
// whatever they have started is in it. Where there are no control groups they get SIGSTOP instead, which misses
// what has left both its parent and its session.
package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// groupName is of the control group below the hierarchy's root.
const groupName = "wrenn-user"

// frozenPoll is how often is looked whether all processes stand still: they do within milliseconds, unless
// one is in a call that cannot be interrupted.
const frozenPoll = time.Millisecond

// Freezer is safe for concurrent use.
type Freezer struct {
	dir   string   // of the group; empty: by signals
	group *os.File // open, for the start of processes

	mu      sync.Mutex
	stopped []int // by signals
}

// New makes the group below root, where a cgroup2 hierarchy is mounted; with an empty root, or one that has
// none, processes are stopped by signals, and the error says why. The Freezer is usable in any case.
func New(root string) (*Freezer, error) {
	if root == "" {
		return &Freezer{}, nil
	}
	dir := filepath.Join(root, groupName)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return &Freezer{}, fmt.Errorf("make a control group: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cgroup.freeze")); err != nil {
		return &Freezer{}, fmt.Errorf("make a control group: %w", err)
	}
	group, err := os.Open(dir)
	if err != nil {
		return &Freezer{}, fmt.Errorf("open a control group: %w", err)
	}
	return &Freezer{dir: dir, group: group}, nil
}

// Join lets a process that is to be started with attr be born in the group.
func (f *Freezer) Join(attr *syscall.SysProcAttr) {
	if f.group != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(f.group.Fd())
	}
}

// Freeze returns when no process runs that was started by Join, or descends from one. When it fails, also
// because ctx has ended, they go on.
func (f *Freezer) Freeze(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.group != nil {
		err = freezeGroup(ctx, f.dir)
	} else {
		err = f.stopAll(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("freeze the processes: %w", err), f.thaw())
	}
	return nil
}

// Thaw lets the processes go on. It is idempotent.
func (f *Freezer) Thaw() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.thaw()
}

// Close thaws what is frozen and removes the group, if nothing is left in it.
func (f *Freezer) Close() error {
	err := f.Thaw()
	if f.group == nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = os.Remove(f.dir) // what is left in it keeps it, which hurts nobody
	return errors.Join(err, f.group.Close())
}

// Rehearse freezes and thaws a group with nothing in it, which stops nobody.
func (f *Freezer) Rehearse(ctx context.Context) error {
	if f.group == nil {
		return nil
	}
	dir := f.dir + "-rehearsal"
	err := os.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, os.ErrExist) { // one that was killed has left it
		err = errors.Join(freezeGroup(ctx, dir), write(dir, "0"), os.Remove(dir))
	}
	if err != nil {
		return fmt.Errorf("rehearse a freeze: %w", err)
	}
	return nil
}

func (f *Freezer) thaw() error {
	if f.group != nil {
		return write(f.dir, "0")
	}
	var errs []error
	for _, pid := range f.stopped {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("continue process %d: %w", pid, err))
		}
	}
	f.stopped = nil
	return errors.Join(errs...)
}

func write(dir, value string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(value), 0)
}

func freezeGroup(ctx context.Context, dir string) error {
	if err := write(dir, "1"); err != nil {
		return err
	}
	for {
		events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			return err
		}
		lines := strings.Split(string(events), "\n")
		// An empty group is never reported as frozen by some kernels.
		if slices.Contains(lines, "frozen 1") || slices.Contains(lines, "populated 0") {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(frozenPoll):
		}
	}
}
