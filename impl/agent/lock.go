package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/firecracker"
	"wrenn/impl/internal/atomicfile"
)

// Slots, their names and their addresses are the host's, whatever directory an agent keeps its sandboxes
// in, so there is one agent per host at a time, and a next one in another directory must not take what the
// last one's sandboxes still use.
const (
	lockPath   = "/run/wrenn-agent.lock"
	recordPath = "/run/wrenn-agent.json"
)

// record says whose sandboxes are on the host.
type record struct {
	Dir string `json:"dir"`
	// Addr is where the agent listens, if it runs: HOST:PORT.
	Addr string `json:"addr"`
	// HostBoot is the boot of the host that it was written in; after another one no sandbox is left.
	HostBoot string `json:"hostBoot"`
}

// lockHost makes this process the host's only agent until the returned function is called or the process
// ends. It refuses while sandboxes of an agent with another directory are left.
func lockHost(ctx context.Context, mine record) (unlock func() error, err error) {
	f, err := waitForLock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(lockPath), f.Close())
		}
	}()
	if err := succeed(ctx, mine); err != nil {
		return nil, err
	}
	return func() error { return errors.Join(resign(mine.Dir), os.Remove(lockPath), f.Close()) }, nil
}

// errHeld is what the error of takeLock wraps when another process has the lock.
var errHeld = errors.New("another agent runs on this host")

// lockTries is how often takeLock tries: runningAgent has the lock for microseconds when it looks.
const lockTries = 10

// takeLock locks the file at lockPath. Its last holder removes it, so what was opened may no longer be the
// file that others would open: then it is no lock.
func takeLock() (*os.File, error) {
	for try := 1; ; {
		f, err := os.OpenFile(lockPath, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("agent: open the host's lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			holder, readErr := os.ReadFile(lockPath)
			if readErr != nil {
				holder = []byte("unknown")
			}
			if err := f.Close(); err != nil {
				return nil, fmt.Errorf("agent: close the host's lock: %w", err)
			}
			if try++; try > lockTries {
				return nil, fmt.Errorf("agent: %w (pid %s): %w", errHeld, holder, err)
			}
			time.Sleep(2 * time.Millisecond)
			continue
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("agent: look at the host's lock: %w", err), f.Close())
		}
		if now, err := os.Stat(lockPath); err == nil && os.SameFile(mine, now) {
			return signed(f)
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("agent: close the host's lock: %w", err)
		}
	}
}

// signed writes into the lock who has it, for whoever is refused.
func signed(lock *os.File) (*os.File, error) {
	err := lock.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(lock, "%d", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("agent: write the host's lock: %w", err), os.Remove(lockPath), lock.Close())
	}
	return lock, nil
}

// agentRuns reports whether a process has the host's lock.
func agentRuns() (bool, error) {
	f, err := os.Open(lockPath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("agent: open the host's lock: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return false, fmt.Errorf("agent: look at the host's lock: %w", err)
	}
	return err != nil, nil
}

// readRecord returns the zero record when there is none.
func readRecord() (record, error) {
	var r record
	data, err := os.ReadFile(recordPath)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("agent: read %s: %w", recordPath, err)
	}
	return r, nil
}

func hostBoot() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("agent: read the boot id: %w", err)
	}
	return strings.TrimSpace(string(boot)), nil
}

// succeed checks what the last agent left and puts this one's name in its place.
func succeed(ctx context.Context, mine record) error {
	var err error
	if mine.HostBoot, err = hostBoot(); err != nil {
		return err
	}
	last, err := readRecord()
	if err != nil {
		return err
	}
	if last.HostBoot == mine.HostBoot && last.Dir != mine.Dir {
		if err := checkLeft(ctx, last.Dir); err != nil {
			return err
		}
	}
	if err := atomicfile.RemoveUnfinished(recordPath); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	data, err := json.Marshal(mine)
	if err != nil {
		return fmt.Errorf("agent: encode the host's record: %w", err)
	}
	return atomicfile.Write(recordPath, data, 0o600)
}

// checkLeft refuses when sandboxes of another directory are left. Machines whose directory is gone can be
// taken over by nobody, and are ended.
func checkLeft(ctx context.Context, other string) error {
	if err := leftByOther(other); err != nil {
		return err
	}
	return endOrphans(ctx, other)
}

func leftByOther(dir string) error {
	if !sandboxesLeft(dir) {
		return nil
	}
	return fmt.Errorf("agent: sandboxes are left on this host by an agent with the directory %s; "+
		"to take them over or to end them start that one again: wrenn up --dir %s", dir, strings.TrimSuffix(dir, "/agent"))
}

// endOrphans ends the machines below root.
func endOrphans(ctx context.Context, root string) error {
	orphans, err := firecracker.Orphans(root)
	if err != nil {
		return err
	}
	var errs []error
	for dir, id := range orphans {
		p, err := firecracker.Adopt(id)
		if errors.Is(err, firecracker.ErrGone) {
			continue
		}
		if err == nil {
			err = p.Kill(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("agent: end the machine left in %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// resign removes the record when nothing of ours is left on the host.
func resign(dir string) error {
	if sandboxesLeft(dir) {
		return nil
	}
	if err := os.Remove(recordPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("agent: remove the host's record: %w", err)
	}
	return nil
}

// sandboxesLeft reports whether an agent's directory has sandboxes in it.
func sandboxesLeft(dir string) bool {
	entries, err := os.ReadDir(filepath.Join(dir, "sandboxes"))
	return err == nil && len(entries) > 0
}
