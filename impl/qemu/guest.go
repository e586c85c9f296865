package qemu

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout bounds QEMU's own start, up to its control connection: 50 ms idle, seconds under load, and
// many where the processor that runs QEMU is emulated.
const startTimeout = 30 * time.Second

// guest is a QEMU process with its control connection.
type guest struct {
	qmp    *qmp
	cmd    *exec.Cmd
	stderr *lastLines
	exited chan struct{}
	err    error // of Wait, once exited is closed

	version string         // of QEMU, "7.2"
	swaps   map[string]int // how often each drive's backing file was exchanged

	mu       sync.Mutex
	shutdown string // the reason that the SHUTDOWN event gave
}

// incoming is what a guest goes on from instead of booting.
type incoming struct {
	state *os.File // at its device state
	fd    int      // its number in QEMU
	qemu  string   // the version that saved it
}

// startGuest starts QEMU. Without something to go on from it boots, and the CPUs run; otherwise the CPUs stand
// still once the state is loaded.
func startGuest(m *machine, in *incoming) (*guest, error) {
	ours, theirs, err := controlConnection()
	if err != nil {
		return nil, err
	}
	files := []*os.File{theirs, m.memory.file} // see fdQMP
	for _, n := range m.nics {
		files = append(files, m.taps[n.IfaceID])
	}
	argv := m.argv
	if in != nil {
		argv, files = m.incomingArgv, append(files, in.state)
	}
	g := &guest{stderr: &lastLines{to: os.Stderr}, exited: make(chan struct{}), swaps: map[string]int{}}
	line := argv()
	g.cmd = exec.Command(line[0], line[1:]...) //nolint:noctx // lives as long as the guest
	g.cmd.Stdin, g.cmd.Stdout, g.cmd.Stderr = m.cfg.Stdin, m.cfg.Stdout, g.stderr
	g.cmd.ExtraFiles = files
	// Whatever happens to us, SIGKILL included, QEMU does not outlive us.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = g.spawn()
	// QEMU has copies of its own. Its end of the control connection must be closed here, or its death
	// would not be seen; the memory stays open for snapshots, the TAPs so that nobody else attaches to them.
	_ = theirs.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", m.cfg.QEMU, err), ours.Close())
	}
	if err := g.greet(ours, in); err != nil {
		g.kill()
		return nil, fmt.Errorf("%w; qemu says: %s", err, g.stderr)
	}
	return g, nil
}

func (g *guest) greet(conn net.Conn, in *incoming) error {
	q, err := newQMP(conn, startTimeout, g.onEvent)
	if err != nil {
		return err
	}
	g.qmp = q
	if g.version, err = g.qemuVersion(); err != nil {
		return err
	}
	if in == nil {
		return q.do("cont", nil, nil)
	}
	if in.qemu != g.version {
		return fmt.Errorf("the snapshot is of qemu %s, and this is %s", in.qemu, g.version)
	}
	if err := q.do("migrate-incoming", object{"uri": fmt.Sprintf("fd:%d", in.fd)}, nil); err != nil {
		return err
	}
	return g.awaitLoaded()
}

// loadTimeout bounds how long QEMU may take to load a device state: 35 ms idle. A state that it does not
// understand ends it at once.
const loadTimeout = 30 * time.Second

// awaitLoaded waits until QEMU has taken in the device state and stands still.
func (g *guest) awaitLoaded() error {
	for deadline := time.Now().Add(loadTimeout); ; time.Sleep(2 * time.Millisecond) {
		var now struct {
			Status string `json:"status"`
		}
		if err := g.qmp.do("query-status", nil, &now); err != nil {
			return err
		}
		switch {
		case now.Status == "paused":
			return nil
		case now.Status != "inmigrate":
			return fmt.Errorf("load the device state: qemu is %q", now.Status)
		case time.Now().After(deadline):
			return fmt.Errorf("load the device state: not done within %s", loadTimeout)
		}
	}
}

// controlConnection makes the connection to QEMU: our end, and its end.
func controlConnection() (net.Conn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the control connection: %w", err)
	}
	local, remote := os.NewFile(uintptr(pair[0]), "qmp"), os.NewFile(uintptr(pair[1]), "qmp")
	conn, err := net.FileConn(local)
	err = errors.Join(err, local.Close())
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make the control connection: %w", err), remote.Close())
	}
	return conn, remote, nil
}

// spawn starts QEMU from a thread of its own. The kernel ties the parent-death signal to the thread that
// forked, not to the process, so that thread has to live as long as QEMU does.
func (g *guest) spawn() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := g.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		g.err = g.cmd.Wait()
		close(g.exited)
	}()
	return <-started
}

// kill ends QEMU and waits for it.
func (g *guest) kill() {
	_ = g.cmd.Process.Kill() // an error says that it is gone already
	<-g.exited
	if g.qmp != nil {
		g.qmp.close()
	}
}

func (g *guest) onEvent(name string, data json.RawMessage) {
	if name != "SHUTDOWN" {
		return
	}
	var d struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(data, &d) != nil {
		return
	}
	g.mu.Lock()
	g.shutdown = d.Reason
	g.mu.Unlock()
}

// exitCode is what Firecracker would exit with: 0 when the guest ended by itself, 1 when the VMM broke or
// was ended. It is for a guest that has exited.
func (g *guest) exitCode() int {
	<-g.qmp.done // QEMU is gone, so its last event has arrived or never will
	g.mu.Lock()
	defer g.mu.Unlock()
	// "guest-reset", "guest-shutdown" or "guest-panic"; a signal from the host has another name.
	if g.err == nil && strings.HasPrefix(g.shutdown, "guest-") {
		return exitOK
	}
	return exitError
}

// ctrlAltDel presses the keys on the guest's keyboard.
func (g *guest) ctrlAltDel() error {
	key := func(code string) object { return object{"type": "qcode", "data": code} }
	keys := object{"keys": []object{key("ctrl"), key("alt"), key("delete")}}
	if err := g.qmp.do("send-key", keys, nil); err != nil {
		return faultf("Internal VMM error: %s", err)
	}
	return nil
}

// randomMAC is a locally administered unicast address.
func randomMAC() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, by its contract
	b[0] = b[0]&^1 | 2
	return net.HardwareAddr(b[:]).String()
}

// lastLines keeps the end of what QEMU prints on stderr, and passes all of it on.
type lastLines struct {
	to   io.Writer
	mu   sync.Mutex
	text []byte
}

// keptStderr bounds what an error quotes of QEMU's stderr, in bytes.
const keptStderr = 2048

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.text = append(l.text, p...)
	if over := len(l.text) - keptStderr; over > 0 {
		l.text = l.text[over:]
	}
	l.mu.Unlock()
	return l.to.Write(p)
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.text) == 0 {
		return "(nothing)"
	}
	return strings.TrimSpace(string(l.text))
}
