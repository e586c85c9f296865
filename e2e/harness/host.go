package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
)

// Host is a Linux host of its own on this machine, made of namespaces: network (with nothing but lo),
// mounts (with an empty /run) and processes. Several agents run side by side on as many, each with its own
// iptables and routes. It outlives every process that is started in it except its first one, and when
// that ends, because the test ends or is killed, the kernel ends all the others, VMMs included, and takes
// the namespaces apart.
//
// A nil *Host is the machine itself.
type Host struct {
	// Name is what logs and artifacts call it.
	Name string

	tb     testing.TB
	first  *exec.Cmd
	alive  io.Closer // the first process's standard input, whose end is its end
	spaces []space
	dirs   []string // what processes started in it were given for their files
}

// space is one of a Host's namespaces.
type space struct {
	kind int
	file *os.File
}

// firstProcess ignores SIGCHLD, upon which the kernel reaps whatever is left to it. It ends when its
// standard input does.
const firstProcess = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
trap '' CHLD
echo ready
exec cat`

// NewHost makes a host, which is gone with all that runs on it when the test ends.
func NewHost(tb testing.TB, name string) *Host {
	tb.Helper()
	need.Root(tb)
	need.Program(tb, "sh", "mount", "ip")
	h := &Host{Name: name, tb: tb, first: exec.Command("sh", "-c", firstProcess)}
	h.first.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	var stderr bytes.Buffer
	h.first.Stderr = &stderr
	var err error
	h.alive, err = h.first.StdinPipe()
	require.NoError(tb, err)
	out, err := h.first.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, h.first.Start())
	tb.Cleanup(h.end)
	said := make([]byte, len("ready\n"))
	_, err = io.ReadFull(out, said)
	require.NoError(tb, err, "start a host: %s", &stderr)
	for _, s := range []struct {
		name string
		kind int
	}{{"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", h.first.Process.Pid, s.name))
		require.NoError(tb, err)
		h.spaces = append(h.spaces, space{s.kind, f})
	}
	return h
}

func (h *Host) end() {
	_ = h.alive.Close() // it has ended already when this fails
	ended := make(chan struct{})
	go func() {
		_ = h.first.Wait() // how the first process ended tells nothing
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(Patience):
		assert.Fail(h.tb, "a host does not end", h.Name)
		_ = h.first.Process.Kill()
	}
	for _, s := range h.spaces {
		assert.NoError(h.tb, s.file.Close())
	}
}

// Do runs fn on a thread that is on the host: sockets and files that fn opens are the host's, and so are
// processes that it starts; goroutines that it starts are not. fn must not end the test.
func (h *Host) Do(fn func() error) error {
	if h == nil {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := h.enter()
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// enter moves the calling thread. Its working directory becomes the root.
func (h *Host) enter() error {
	// Mounts cannot be changed while other threads share the working directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter host %s: %w", h.Name, err)
	}
	for _, s := range h.spaces {
		if err := unix.Setns(int(s.file.Fd()), s.kind); err != nil {
			return fmt.Errorf("enter host %s: %w", h.Name, err)
		}
	}
	return nil
}

// Run runs a command on the host and returns what it printed; it must succeed.
func (h *Host) Run(name string, args ...string) string {
	h.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := h.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	require.NoError(h.tb, err, "%s %s: %s", name, strings.Join(args, " "), &stderr)
	return out.String()
}

// Must runs fn on the host; it must succeed.
func (h *Host) Must(fn func() error) {
	h.tb.Helper()
	require.NoError(h.tb, h.Do(fn))
}

// DialContext connects from the host, as net.Dialer's method does. The address must be numeric.
func (h *Host) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = h.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens on the host.
func (h *Host) Listen(network, addr string) (l net.Listener, err error) {
	err = h.Do(func() error {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// netns is the file of the host's network namespace.
func (h *Host) netns() (*os.File, error) {
	for _, s := range h.spaces {
		if s.kind == unix.CLONE_NEWNET {
			return s.file, nil
		}
	}
	return nil, errors.New("the host has no network namespace")
}
