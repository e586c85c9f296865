package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// beat is the pause between two messages of a talk, and between two appended lines.
const beat = 20 * time.Millisecond

// talk sends numbered lines and expects each back, for ever.
type talk struct {
	mu    sync.Mutex
	moves int64
	wrong error
}

func (t *talk) over(conn io.ReadWriter) {
	in := bufio.NewReader(conn)
	for n := int64(1); ; n++ {
		want := fmt.Sprintf("message %d\n", n)
		_, err := io.WriteString(conn, want)
		got := ""
		if err == nil {
			got, err = in.ReadString('\n')
		}
		if err == nil && got != want {
			err = fmt.Errorf("%q came back for %q", got, want)
		}
		t.mu.Lock()
		t.moves, t.wrong = n, err
		t.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(beat)
	}
}

func (t *talk) check() (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.moves, t.wrong
}

// newSockets talks over a TCP connection within the guest.
func newSockets() (*talk, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
		}
	}()
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	t := &talk{}
	go t.over(conn)
	return t, nil
}

// childEnv says how many generations of children are still to come.
const childEnv = "DRIFT_CHILD"

type pipes struct {
	io.Reader
	io.Writer
}

// newChildren talks, through a child, with a grandchild.
func newChildren() (*talk, error) {
	conn, err := startChild("2")
	if err != nil {
		return nil, err
	}
	t := &talk{}
	go t.over(conn)
	return t, nil
}

func startChild(generations string) (io.ReadWriter, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+generations)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return pipes{out, in}, cmd.Start()
}

// childMain is the child, which passes everything on to its own, and the grandchild, which answers.
func childMain() {
	if os.Getenv(childEnv) == "1" {
		_, _ = io.Copy(os.Stdout, os.Stdin)
		return
	}
	conn, err := startChild("1")
	if err != nil {
		fmt.Fprintln(os.Stderr, "drift: start a grandchild:", err)
		os.Exit(1)
	}
	go func() { _, _ = io.Copy(conn, os.Stdin) }()
	_, _ = io.Copy(os.Stdout, conn)
}

// newTerminal talks with a pseudoterminal, which echoes by itself.
func newTerminal() (*talk, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	mode, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	mode.Oflag &^= unix.OPOST // a newline comes back as it went
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, mode); err != nil {
		return nil, err
	}
	go func() { _, _ = io.Copy(io.Discard, slave) }()
	t := &talk{}
	go t.over(master)
	return t, nil
}
