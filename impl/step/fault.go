//go:build fault

package step

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// FaultEnv names the environment variable with the path of a file that arms faults, one per line:
//
//	ACT/STEP MOMENT KIND N
//
// MOMENT is before, after or undone; N says at which of the moments, counted from 1 since the line was
// written, the fault comes. The file is read at each moment, so a fault can be armed while the program runs.
// KIND is one of
//
//	kill   the process ends by SIGKILL
//	stop   the process is stopped by SIGSTOP, until somebody continues it
//	error  the step fails, after it was done where MOMENT is after
//	abandon  the goroutine that performs the act ends, and nothing of it is undone: what a kill is for a test
//	         whose kernel is in its own memory
//
// Each moment that comes, and each fault, is written to the file of the same name with FaultTrace behind it.
const FaultEnv = "WRENN_FAULT"

// FaultTrace is the end of the name of the file that tells what came to pass, a line each: "ACT/STEP MOMENT",
// with KIND behind it for a fault.
const FaultTrace = ".trace"

// armed counts, for each line of the file, the moments that it fits.
var armed = struct {
	sync.Mutex
	content string
	seen    map[string]int
}{}

// fault does what the file says about this moment.
func fault(act, name string, m moment) error {
	path := os.Getenv(FaultEnv)
	if path == "" {
		return nil
	}
	where := act + "/" + name + " " + string(m)
	if err := trace(path, where); err != nil {
		return err
	}
	kind, err := due(path, where)
	if err != nil || kind == "" {
		return err
	}
	if err := trace(path, where+" "+kind); err != nil {
		return err
	}
	switch kind {
	case "kill":
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return err
		}
		select {}
	case "stop":
		return syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "abandon":
		runtime.Goexit()
	case "error":
		return fmt.Errorf("injected fault %s %s", m, name)
	}
	return fmt.Errorf("%s: %q is no kind of fault", path, kind)
}

// due says which fault is to come now, if any.
func due(path, where string) (kind string, err error) {
	content, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	armed.Lock()
	defer armed.Unlock()
	if armed.content != string(content) {
		armed.content, armed.seen = string(content), map[string]int{}
	}
	for _, line := range strings.Split(strings.TrimSpace(string(content)), "\n") {
		f := strings.Fields(line)
		if len(f) != 4 || f[0]+" "+f[1] != where {
			continue
		}
		armed.seen[line]++
		if fmt.Sprint(armed.seen[line]) == f[3] {
			kind = f[2]
		}
	}
	return kind, nil
}

func trace(path, line string) error {
	f, err := os.OpenFile(path+FaultTrace, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
