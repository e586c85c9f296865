package main

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	envdPath = "/usr/bin/envd"
	// guestPath is the PATH of a Debian login, root's part first because envd runs as root.
	guestPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// openFilesSoft and openFilesHard are what systemd gives its services. The kernel's own hard limit
	// of 4096 is too low for a notebook server or a file watcher.
	openFilesSoft, openFilesHard = 1024, 524288
	// syncLimit bounds the last write-back: a disk that no longer answers must not keep a dead
	// machine alive.
	syncLimit = 5 * time.Second
)

// supervise starts envd and reaps every process that loses its parent. It returns when envd is gone:
// nobody could reach the sandbox any more, so the machine ends.
func supervise(started string) error {
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ends
		reboot()
	}()
	// Ctrl-Alt-Del comes to PID 1 as SIGINT instead of resetting the machine at once.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		say("wrenn-init: ask for ctrl-alt-del: " + err.Error())
	}
	envd, err := startEnvd(started)
	if err != nil {
		return err
	}
	return reap(envd)
}

func startEnvd(started string) (pid int, err error) {
	limit := syscall.Rlimit{Cur: openFilesSoft, Max: openFilesHard}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		say("wrenn-init: raise the limit of open files: " + err.Error())
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, errors.New("open envd's standard input: " + err.Error())
	}
	defer null.Close()
	p, err := os.StartProcess(envdPath, []string{"envd", "--guest"}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + guestPath, "HOME=/root", "WRENN_INIT_SECONDS=" + started},
		Files: []*os.File{null, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, errors.New("start envd: " + err.Error())
	}
	pid = p.Pid
	// The process is waited for by pid together with all others; the handle is not needed.
	return pid, p.Release()
}

// reap collects dead children for ever, and returns how envd ended when it did.
func reap(envd int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return errors.New("wait for children: " + err.Error())
		}
		if pid == envd {
			return errors.New("envd ended: " + describeStatus(status))
		}
	}
}

func describeStatus(s unix.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + unix.SignalName(s.Signal())
	}
	return "exit status " + strconv.Itoa(s.ExitStatus())
}

// reboot writes back what it can and restarts the machine. It does not return.
func reboot() {
	synced := make(chan struct{})
	go func() {
		unix.Sync()
		close(synced)
	}()
	select {
	case <-synced:
	case <-time.After(syncLimit):
		say("wrenn-init: the disk did not sync in " + syncLimit.String())
	}
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	// Its only failure is a missing privilege, which PID 1 of a guest has. Should it ever come to that,
	// the end of PID 1 panics the kernel, and panic=1 restarts it after a second.
	say("wrenn-init: reboot: " + err.Error())
	os.Exit(1)
}
