package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is what /proc says of one.
type process struct {
	pid, parent, session int
	state                string
}

// stopAll stops descendants of this process until a look finds none running: they may have started others
// meanwhile. Those that were stopped before are left alone, and so stay stopped.
func (f *Freezer) stopAll(ctx context.Context) error {
	for {
		all, err := descendants(os.Getpid())
		if err != nil {
			return err
		}
		running := 0
		for _, p := range all {
			if p.state == "T" || p.state == "t" || p.state == "Z" || p.state == "X" {
				continue
			}
			sent := slices.Contains(f.stopped, p.pid)
			if sent && p.state == "D" {
				continue // it stops when its call returns; a parent in vfork waits for a child that is stopped
			}
			running++
			if sent {
				continue // on its way
			}
			if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
				if errors.Is(err, syscall.ESRCH) {
					continue
				}
				return fmt.Errorf("stop process %d: %w", p.pid, err)
			}
			f.stopped = append(f.stopped, p.pid)
		}
		if running == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(frozenPoll):
		}
	}
}

// descendants are the processes whose line of parents leads to root, or whose session's leader's does.
func descendants(root int) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[int]process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			all[pid] = p
		}
	}
	var found []process
	for _, p := range all {
		if p.pid != root && (descends(all, p.pid, root) || descends(all, p.session, root)) {
			found = append(found, p)
		}
	}
	return found, nil
}

func descends(all map[int]process, pid, root int) bool {
	for range len(all) { // a bound: the table may have changed while it was read
		p, ok := all[pid]
		if !ok || pid == root {
			return false
		}
		if p.parent == root {
			return true
		}
		pid = p.parent
	}
	return false
}

// readProcess reads /proc/PID/stat; the name in it, in parentheses, may hold anything.
func readProcess(pid int) (process, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 4 {
		return process{}, false
	}
	parent, err1 := strconv.Atoi(f[1])
	session, err2 := strconv.Atoi(f[3])
	return process{pid: pid, parent: parent, session: session, state: f[0]}, err1 == nil && err2 == nil
}
