package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// guestArg0 is the name under which this program is the guest's first process.
const guestArg0 = "procvmm-guest"

// EnvEnvd names the host's file that takes the place of the root drive's envd; without it the drive's own
// runs, as in every VMM. Its value must be an absolute path.
const EnvEnvd = "WRENN_PROCVMM_ENVD"

// envdPath is where every template has its daemon.
const envdPath = "/usr/bin/envd"

// guestConfig is what the guest's first process needs to know; it reads it as JSON from its standard input.
type guestConfig struct {
	Drive drive
	Args  string // the kernel's command line, of which wrenn.* is for the guest
	NIC   *nic
	Envd  string // a file of the host to run as envd; empty for the drive's own
}

// guest is the running guest as the VMM sees it: a tree of processes with a pid namespace, and a wire.
type guest struct {
	init  *os.Process
	pids  string // the pid namespace, as /proc/PID/ns/pid shows it
	ended chan error

	stopped []int // by pause, for resume
}

// startGuest starts the guest's first process in namespaces of its own and returns once it exists. tap is
// nil where there is no network. ended gets nil when the guest has rebooted, else what went wrong.
//
// The network namespace has no name and is made for one thread, which starts the process and waits for
// it: the parent-death signal is that of the thread, not of the program. So however the VMM dies, its
// thread and files go, the guest is killed with its pid namespace, and the kernel takes apart namespaces,
// mounts, loop device and links.
func startGuest(cfg guestConfig, tap *os.File, console *os.File) (*guest, error) {
	cfg.Envd = os.Getenv(EnvEnvd)
	g := &guest{ended: make(chan error, 1)}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread's network namespace is not the program's
		cmd, err := g.start(cfg, tap, console)
		started <- err
		if err == nil {
			g.ended <- how(cmd.Wait())
		}
	}()
	return g, <-started
}

func (g *guest) start(cfg guestConfig, tap, console *os.File) (*exec.Cmd, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make the guest's network namespace: %w", err)
	}
	card, err := plugIn(cfg)
	if err != nil {
		return nil, err
	}
	if card != nil {
		connectFrames(card, tap, cfg.NIC)
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{guestArg0}
	cmd.Env = []string{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(raw), console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guest's first process: %w", err)
	}
	g.init = cmd.Process
	if g.pids, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", g.init.Pid)); err != nil {
		return nil, errors.Join(fmt.Errorf("find the guest's pid namespace: %w", err), g.init.Kill(), cmd.Wait())
	}
	return cmd, nil
}

// how tells a reboot of the guest from a failure. reboot(2) in a pid namespace ends its first process by
// SIGHUP (restart) or SIGINT (halt and power-off).
func how(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && (status.Signal() == syscall.SIGHUP || status.Signal() == syscall.SIGINT) {
		return nil
	}
	return fmt.Errorf("the guest's first process ended: %w", err)
}

// restart is Ctrl-Alt-Del: the guest's first process ends the guest.
func (g *guest) restart() error { return g.init.Signal(syscall.SIGTERM) }
