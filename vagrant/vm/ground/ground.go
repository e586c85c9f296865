// Package ground is a place on this machine for libvirt and its VMs: a network, mounts and processes of
// their own, held together by one process. The machine's own libvirt, bridges and firewall are not touched,
// nothing needs an init system, and when the holder ends, the kernel takes everything in it away with it.
package ground

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit bounds the start of the holder and of libvirtd in it, which take a second.
const startLimit = 30 * time.Second

// Names in a ground's folder.
const (
	stateName   = "ground.json"
	logName     = "ground.log"
	libvirtName = "libvirt" // images and settings of libvirt; goes with the ground
)

// Ground is a running one.
type Ground struct {
	dir    string
	holder identity
}

// identity tells a process apart from a later one of the same number.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
}

// Find returns the ground that runs in dir, or nil.
func Find(dir string) (*Ground, error) {
	content, err := os.ReadFile(filepath.Join(dir, stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the ground: %w", err)
	}
	g := &Ground{dir: dir}
	if err := json.Unmarshal(content, &g.holder); err != nil {
		return nil, fmt.Errorf("look for the ground in %s: %w", dir, err)
	}
	now, err := identify(g.holder.PID)
	if err != nil || now != g.holder {
		return nil, nil //nolint:nilerr // the process is gone
	}
	return g, nil
}

// Start starts one; dir must be absolute. The program that calls it must call Hold when Held says so.
func Start(ctx context.Context, dir string) (*Ground, error) {
	g, err := start(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("start libvirt: %w", err)
	}
	return g, nil
}

func start(ctx context.Context, dir string) (*Ground, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, logName))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // it outlives us; Stop ends it
	cmd.Env = append(os.Environ(), holdEnv+"="+dir)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID}
	err = cmd.Start()
	theirs.Close() // the child has its own
	if err != nil {
		return nil, fmt.Errorf("make namespaces (as root): %w", err)
	}
	g := &Ground{dir: dir}
	g.holder, err = identify(cmd.Process.Pid)
	if err == nil {
		err = g.await(ctx, ready)
	}
	if err == nil {
		err = g.write()
	}
	if err != nil {
		_ = cmd.Process.Kill() // gone already, then
		_ = cmd.Wait()         // what it said is in the log
		return nil, fmt.Errorf("%w; its log:\n%s", err, tail(log.Name()))
	}
	go func() { _ = cmd.Wait() }() // so that no zombie stays when it ends before this process
	return g, nil
}

// await waits for the holder's word that libvirtd answers.
func (g *Ground) await(ctx context.Context, ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(startLimit)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })()
	line, err := bufio.NewReader(ready).ReadString('\n')
	if err == nil && line == readyWord {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("its holder ended")
	}
	return errors.Join(err, ctx.Err())
}

func (g *Ground) write() error {
	content, err := json.Marshal(g.holder)
	if err != nil {
		return err
	}
	path := filepath.Join(g.dir, stateName)
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Command is a command in the ground. It ends with ctx.
func (g *Ground) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(g.holder.PID), "--mount", "--net", "--pid", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	// nsenter waits for the command, which would outlive it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Stop ends the ground with all that runs in it, and removes its files but the log.
func (g *Ground) Stop() error {
	pidfd, err := unix.PidfdOpen(g.holder.PID, 0)
	if err == nil {
		defer unix.Close(pidfd) //nolint:errcheck // of no consequence
		if err = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err == nil {
			err = awaitEnd(pidfd)
		}
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the ground (process %d): %w", g.holder.PID, err)
	}
	return Clean(g.dir)
}

// Clean removes the files of a ground that has ended, however it did.
func Clean(dir string) error {
	err := os.RemoveAll(filepath.Join(dir, libvirtName))
	if gone := os.Remove(filepath.Join(dir, stateName)); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// awaitEnd waits for the end of a process, which includes that of all in its pid namespace.
func awaitEnd(pidfd int) error {
	for deadline := time.Now().Add(startLimit); time.Now().Before(deadline); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 1000)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("it is still there after %v", startLimit)
}

func identify(pid int) (identity, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	// The second field is the program's name, which may hold anything.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return identity{}, fmt.Errorf("process %d has ended", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return identity{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, err
}

// tail is the end of a log.
func tail(path string) string {
	const lines = 20
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
