package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// stopLimit bounds a pause. Stopping a process takes microseconds unless it is in an uninterruptible call.
const stopLimit = 5 * time.Second

// pause stops each process of the guest. It goes on until a look finds none running, since they may have
// started others meanwhile. Signals are used and no cgroup, because a killed VMM could not remove its
// cgroup. Programs in the guest cannot tell, save that a shell sees its stopped jobs; those that were
// stopped before stay so after resume.
func (g *guest) pause() error {
	deadline := time.Now().Add(stopLimit)
	for {
		found, err := g.stopRunning()
		if err == nil && found == 0 {
			return nil
		}
		if err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("the guest still runs after %v", stopLimit)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("pause: %w", err), g.resume())
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// stopRunning stops the processes that run, each as soon as it is seen, and says how many there were.
func (g *guest) stopRunning() (found int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !g.holds(pid) || !runs(pid) {
			continue
		}
		found++
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
			return found, fmt.Errorf("stop process %d: %w", pid, err)
		}
		if !slices.Contains(g.stopped, pid) {
			g.stopped = append(g.stopped, pid)
		}
	}
	return found, nil
}

// resume continues what pause has stopped, children before their parents as far as pids tell, so that a
// shell does not find a job stopped.
func (g *guest) resume() error {
	var errs []error
	slices.Sort(g.stopped)
	for _, pid := range slices.Backward(g.stopped) {
		if !g.holds(pid) {
			continue // killed while it was stopped
		}
		if err := unix.Kill(pid, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("resume: continue process %d: %w", pid, err))
		}
	}
	g.stopped = nil
	return errors.Join(errs...)
}

// holds tells whether a process is in the guest. One in a pid namespace that a program in the guest has
// made is not, and goes on through a pause.
func (g *guest) holds(pid int) bool {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return err == nil && ns == g.pids // one that has ended meanwhile has no namespace
}

// runs tells whether a process is neither stopped nor dead.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The state follows the name, which is in parentheses and may hold some.
	_, after, found := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(" "))
	return found && len(after) > 0 && !bytes.ContainsRune([]byte("TtZX"), rune(after[0]))
}
