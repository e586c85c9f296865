package ports

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"wrenn/impl/need"
	"wrenn/impl/netns/netnstest"
)

// deadline is far beyond what anything here takes on an idle machine.
const deadline = 30 * time.Second

// outside is the guest's address as in every VM, outside6 one of IPv6, which guests may be given.
const (
	outside  = "169.254.0.21"
	outside6 = "fd00::21"
)

// TestMain gives the tests a host of their own with a card beside lo.
func TestMain(m *testing.M) {
	netnstest.Isolate()
	if os.Geteuid() == 0 {
		script := "ip link set lo up; ip link add card type veth peer name peer; ip link set peer up; ip addr add " + outside + "/30 dev card; ip link set card up;" +
			"ip addr add " + outside6 + "/64 dev card nodad || true"
		if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "make a card: %v: %s\n", err, out)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// watch runs a Watcher until the test ends, and fails the test where that leaves a descriptor.
func watch(t *testing.T, change func(*Config)) *Watcher {
	t.Helper()
	need.Root(t)
	cfg := Config{Own: []uint16{49983}, Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&cfg)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // the runtime's own descriptors come with the first socket
	require.NoError(t, err)
	require.NoError(t, l.Close())
	before := descriptors(t)
	w := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-over:
		case <-time.After(deadline):
			assert.Fail(t, "the watcher does not end")
		}
		assert.Eventually(t, func() bool { return descriptors(t) <= before }, deadline, 10*time.Millisecond, "descriptors stayed open")
	})
	return w
}

func descriptors(t *testing.T) int {
	d, err := os.ReadDir("/proc/self/fd")
	assert.NoError(t, err)
	return len(d)
}

// echo listens on addr (port 0 for any) and answers each connection with name and whatever it says, to its
// end. It returns the port.
func echo(t *testing.T, name, addr string) (net.Listener, uint16) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, name+":")
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // no splice, whose pipes stay open for reuse
			}()
		}
	}()
	return l, netip.MustParseAddrPort(l.Addr().String()).Port()
}

// ask connects to host:port, says hello, half-closes and returns the answer.
func ask(host string, port uint16) (string, error) {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(netip.MustParseAddr(host), port).String(), deadline)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(deadline))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// answers waits until host:port answers want.
func answers(t *testing.T, want, host string, port uint16) {
	t.Helper()
	var got string
	var err error
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got, err = ask(host, port); err == nil && got == want {
			return
		}
	}
	require.Fail(t, "the port does not answer", "%s:%d answers %q (%v), want %q", host, port, got, err, want)
}

// refuses waits until nobody listens on host:port.
func refuses(t *testing.T, host string, port uint16) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := ask(host, port)
		return err != nil && strings.Contains(err.Error(), "refused")
	}, deadline, 5*time.Millisecond, "the port stays open")
}

// scans counts what a Watcher's scans do; fail makes them fail.
type scans struct {
	real scanner
	n    atomic.Int64
	fail atomic.Bool
}

func (s *scans) scan() ([]listener, error) {
	defer s.n.Add(1)
	if s.fail.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	return s.real.scan()
}

// newScans makes scans whose socket is closed after the watcher has ended: call it before watch.
func newScans(t *testing.T) *scans {
	s := &scans{}
	_, err := s.scan() // so that a census counts its socket
	require.NoError(t, err)
	t.Cleanup(s.real.close)
	return s
}

// pass waits until n more scans are over.
func (s *scans) pass(t *testing.T, n int64) {
	t.Helper()
	until := s.n.Load() + n
	require.Eventually(t, func() bool { return s.n.Load() >= until }, deadline, time.Millisecond, "no more scans")
}

func counted(s *scans) func(*Config) {
	return func(c *Config) { c.scan = s.scan }
}
