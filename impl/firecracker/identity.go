package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Identity names one process for as long as the machine is up. A pid alone is reused; a pid with its
// start time is not, and the boot id tells a pid of before a reboot from one of after it.
type Identity struct {
	// PID is the process id, in the agent's pid namespace.
	PID int `json:"pid"`
	// StartTicks is the start time in clock ticks since boot: field 22 of /proc/PID/stat.
	StartTicks uint64 `json:"start_ticks"`
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID string `json:"boot_id"`
}

// ErrGone says that the process of an Identity does not live any more.
var ErrGone = errors.New("process is gone")

// identify reads the identity of a living process.
func identify(pid int) (Identity, error) {
	ticks, err := startTicks(pid)
	if err != nil {
		return Identity{}, err
	}
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, StartTicks: ticks, BootID: boot}, nil
}

// check returns nil if the identified process lives, ErrGone if not.
func (id Identity) check() error {
	now, err := identify(id.PID)
	if err != nil {
		return err
	}
	if now != id {
		return fmt.Errorf("pid %d belongs to another process now: %w", id.PID, ErrGone)
	}
	return nil
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// startTicks reads field 22 of /proc/PID/stat. A missing process or a zombie is ErrGone.
func startTicks(pid int) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the state of pid %d: %w: %w", pid, ErrGone, err)
	}
	// The name in parentheses may hold spaces and parentheses: fields are counted after the last one.
	end := bytes.LastIndexByte(raw, ')')
	fields := strings.Fields(string(raw[end+1:]))
	const stateField, startField = 0, 22 - 3 // what follows the name is field 3
	if end < 0 || len(fields) <= startField {
		return 0, fmt.Errorf("state of pid %d has %d fields", pid, len(fields))
	}
	if s := fields[stateField]; s == "Z" || s == "X" {
		return 0, fmt.Errorf("pid %d is a zombie: %w", pid, ErrGone)
	}
	ticks, err := strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("start time of pid %d: %w", pid, err)
	}
	return ticks, nil
}
