package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// ErrCommand says that a program or its working directory does not exist, cannot be run, or is too big
// a request for the kernel.
var ErrCommand = errors.New("cannot be run")

// lookPath finds the program of spec as execvp would in its environment and directory.
func lookPath(spec Spec) (string, error) {
	if info, err := os.Stat(spec.Dir); err != nil {
		return "", fmt.Errorf("%w: working directory: %w", ErrCommand, err)
	} else if !info.IsDir() {
		return "", fmt.Errorf("%w: working directory %q: not a directory", ErrCommand, spec.Dir)
	}
	if strings.Contains(spec.Cmd, "/") {
		path := spec.Cmd
		if !filepath.IsAbs(path) {
			path = filepath.Join(spec.Dir, path)
		}
		return path, runnable(path)
	}
	for _, dir := range filepath.SplitList(lookEnv(spec.Env, "PATH")) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(spec.Dir, dir)
		}
		if path := filepath.Join(dir, spec.Cmd); runnable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: command %q: not found in PATH", ErrCommand, spec.Cmd)
}

func runnable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: command: %w", ErrCommand, err)
	case info.IsDir():
		return fmt.Errorf("%w: command %q: is a directory", ErrCommand, path)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%w: command %q: %w", ErrCommand, path, os.ErrPermission)
	}
	return nil
}

// lookEnv returns the last value of key, as the kernel's users do.
func lookEnv(env []string, key string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], key+"="); ok {
			return v
		}
	}
	return ""
}

const (
	// oomProtected and oomOrdinary are what E2B's daemon has for itself and for the users' processes:
	// when memory runs out, the kernel takes a user's process and never the daemon.
	oomProtected = "-1000"
	oomOrdinary  = "100"
)

// oomScore keeps the daemon out of the kernel's reach when memory runs out, and its children in it.
// A child inherits the score at fork, before anything of it can run, so the daemon takes the children's
// for the moment of the fork. A nil oomScore starts processes and touches nothing.
type oomScore struct {
	mu             sync.Mutex
	self, children string
}

// protect makes the daemon unkillable for lack of memory. It needs root.
func protect() (*oomScore, error) {
	o := &oomScore{self: oomProtected, children: oomOrdinary}
	if err := o.set(o.self); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *oomScore) set(v string) error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(v), 0); err != nil {
		return fmt.Errorf("set the daemon's out-of-memory score: %w", err)
	}
	return nil
}

func (o *oomScore) start(cmd *exec.Cmd) (err error) {
	if o != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if err := o.set(o.children); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.set(o.self)) }()
	}
	err = cmd.Start()
	// What the kernel says to the program itself is the client's mistake, not the daemon's.
	for _, e := range []error{syscall.ENOENT, syscall.ENOEXEC, syscall.EACCES, syscall.E2BIG, syscall.ENOTDIR, syscall.ELOOP} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrCommand, err)
		}
	}
	return err
}
