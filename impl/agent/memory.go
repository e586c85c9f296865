package agent

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// guestShare is the part of the host's memory that guests may have when nothing else was asked for, in
// percent: the rest is for the host's own programs and the page cache of the disks.
const guestShare = 85

// guestMemory is what all guests together may have, in MiB.
func guestMemory(asked int) (int, error) {
	if asked > 0 {
		return asked, nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("agent: read the host's memory: %w", err)
	}
	return int(info.Totalram * uint64(info.Unit) / (1 << 20) * guestShare / 100), nil
}
