package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockPath is one per host, whatever the agent's directory: slots, their names and their addresses are
// the host's, and two agents would take the same ones.
const lockPath = "/run/wrenn-agent.lock"

// lockHost makes this process the host's only agent until the returned function is called or the
// process ends.
func lockHost() (unlock func() error, err error) {
	f, err := os.OpenFile(lockPath, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent: open the host's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, readErr := os.ReadFile(lockPath)
		if readErr != nil {
			holder = []byte("unknown")
		}
		return nil, errors.Join(fmt.Errorf("agent: another agent (pid %s) runs on this host: %w", holder, err), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("agent: write the host's lock: %w", err), f.Close())
	}
	if _, err := fmt.Fprintf(f, "%d", os.Getpid()); err != nil {
		return nil, errors.Join(fmt.Errorf("agent: write the host's lock: %w", err), f.Close())
	}
	// The file stays: removing it while another process waits would give two locks.
	return f.Close, nil
}
