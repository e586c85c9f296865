package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Orphans finds the VMMs whose API socket lies in a directory right below root, and returns their
// identities by that directory. It asks the kernel, so it finds even a VMM that was started by an agent
// which was killed before it could note the pid. A process that ends meanwhile is left out.
func Orphans(root string) (map[string]Identity, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("look for VMMs: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for VMMs: %w", err)
	}
	found := map[string]Identity{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue // not a process
		}
		dir := socketDir(pid)
		if dir == "" || filepath.Dir(dir) != root {
			continue
		}
		id, err := identify(pid)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for VMMs: %w", err)
		}
		found[dir] = id
	}
	return found, nil
}

// socketDir is the directory of a process's --api-sock, as Launch passes it; empty if there is none.
func socketDir(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "" // it has ended
	}
	args := bytes.Split(line, []byte{0})
	for i := range len(args) - 1 {
		if string(args[i]) == "--api-sock" && filepath.IsAbs(string(args[i+1])) {
			return filepath.Dir(string(args[i+1]))
		}
	}
	return ""
}
