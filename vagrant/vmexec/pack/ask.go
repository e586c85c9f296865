package pack

import (
	"bufio"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
)

// AskFile is where a package says what its tests need in the machine beside the default set, relative
// to its folder.
const AskFile = "testdata/vmexec.conf"

// Ask is what a package wants of its machine.
type Ask struct {
	Programs []string // names or paths; with their libraries and companions
	Modules  []string // kernel modules
	Files    []string // absolute paths or patterns of files and folders of this machine
	Without  []string // abilities that the machine lacks, in the words of impl/need
	Memory   int      // MiB, 0 for the default
	CPUs     int      // 0 for the default
}

// ReadAsk reads lines "KEY VALUE" into the ask: program, module, file, without, memory, cpus. Later
// numbers win, the rest adds up; # starts a comment. Relative files are relative to dir.
func (a *Ask) ReadAsk(r io.Reader, dir string) error {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("line %d: %q is not KEY VALUE", n, text)
		}
		if err := a.set(fields[0], fields[1], dir); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return lines.Err()
}

func (a *Ask) set(key, value, dir string) (err error) {
	switch key {
	case "program":
		a.Programs = append(a.Programs, value)
	case "module":
		a.Modules = append(a.Modules, value)
	case "file":
		if !filepath.IsAbs(value) {
			value = filepath.Join(dir, value)
		}
		a.Files = append(a.Files, value)
	case "without":
		a.Without = append(a.Without, value)
	case "memory":
		a.Memory, err = number(value, minMemory, maxMemory)
	case "cpus":
		a.CPUs, err = number(value, 1, maxCPUs)
	default:
		return fmt.Errorf("%q is none of program, module, file, without, memory, cpus", key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// Bounds of a machine: below minMemory the kernel and a test program do not fit; the others keep a slip
// of the pen from taking a whole machine down.
const (
	minMemory = 256
	maxMemory = 64 << 10
	maxCPUs   = 64
)

func number(s string, low, high int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q is not a number from %d to %d", s, low, high)
	}
	return n, nil
}
