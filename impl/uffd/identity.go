package uffd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Identity names one process for as long as the host is up, for a journal: its pid is reused, its pid and
// start time together are not, and the boot's id tells it from one before a reboot.
type Identity struct {
	// PID is the process id, in the agent's pid namespace.
	PID int `json:"pid"`
	// StartTicks is the start time in clock ticks since boot: field 22 of /proc/PID/stat.
	StartTicks uint64 `json:"start_ticks"`
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID string `json:"boot_id"`
}

// ErrGone says that the process of an Identity does not live any more.
var ErrGone = errors.New("page server is gone")

// identify reads the identity of a living process.
func identify(pid int) (Identity, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Identity{}, fmt.Errorf("read the boot id: %w", err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Identity{}, fmt.Errorf("read the state of pid %d: %w: %w", pid, ErrGone, err)
	}
	// The name in parentheses may hold spaces and parentheses, so fields count from the last one; what
	// follows it is field 3, the state.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const start = 22 - 3
	if len(fields) <= start {
		return Identity{}, fmt.Errorf("state of pid %d has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return Identity{}, fmt.Errorf("pid %d is a zombie: %w", pid, ErrGone)
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return Identity{}, fmt.Errorf("start time of pid %d: %w", pid, err)
	}
	return Identity{PID: pid, StartTicks: ticks, BootID: strings.TrimSpace(string(boot))}, nil
}

// check returns nil if the process lives, ErrGone if not.
func (id Identity) check() error {
	now, err := identify(id.PID)
	if err == nil && now != id {
		err = fmt.Errorf("pid %d is another process's now: %w", id.PID, ErrGone)
	}
	return err
}
