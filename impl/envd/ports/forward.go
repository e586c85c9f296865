package ports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxConns bounds the connections of all forwards, and maxPortConns those of one, so that one port
	// cannot use up the others' share. A connection over a bound is reset.
	maxConns     = 1024
	maxPortConns = 512
	// copyBuffer is the piece in which bytes are passed on. Splicing would need no copy but two more pipes
	// per connection, of the daemon's descriptors.
	copyBuffer = 32 << 10
	// dialTimeout bounds a connect over loopback, which is immediate unless the backlog is full: then the
	// kernel repeats its SYN after 1 s and 3 s.
	dialTimeout = 5 * time.Second
	// acceptPause is the wait after a failed accept: descriptors or memory have run out.
	acceptPause = 50 * time.Millisecond
)

// forward listens on one address of the guest.
type forward struct {
	l       *net.TCPListener
	inode   uint64
	targets atomic.Pointer[[]netip.AddrPort]
	missed  int // scans in a row that have not seen the target
	conns   atomic.Int64
	over    atomic.Bool // nobody listens on the targets any more, and the listener is closed
}

func listen(ctx context.Context, at netip.AddrPort, targets []netip.AddrPort) (*forward, error) {
	network := "tcp6"
	if at.Addr().Is4() {
		network = "tcp4"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	f := &forward{l: l.(*net.TCPListener)} //nolint:forcetypeassert // a TCP network gives no other
	f.targets.Store(&targets)
	if f.inode, err = inodeOf(f.l); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return f, nil
}

func inodeOf(l *net.TCPListener) (uint64, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st syscall.Stat_t
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = syscall.Fstat(int(fd), &st) }); err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, fmt.Errorf("find the inode of a listener: %w", inner)
	}
	return st.Ino, nil
}

// serve accepts until the listener is closed; group counts what it leaves running.
func (f *forward) serve(ctx context.Context, all *limit, group *sync.WaitGroup) {
	for {
		in, err := f.l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
				continue
			}
		}
		if !all.take() {
			reset(in)
			continue
		}
		if f.conns.Add(1) > maxPortConns {
			f.conns.Add(-1)
			all.give()
			reset(in)
			continue
		}
		group.Go(func() {
			defer all.give()
			defer f.conns.Add(-1)
			f.pass(ctx, in)
		})
	}
}

// pass connects in to the first target that answers and copies both ways, half-closes included, until both
// sides have ended, either breaks, or ctx ends; the last two reset both. Where all targets refuse, the program has
// gone: its port is free before anybody outside is told so, whenever the next scan comes.
func (f *forward) pass(ctx context.Context, in *net.TCPConn) {
	out, gone, err := dial(ctx, *f.targets.Load())
	if err != nil {
		if gone {
			f.over.Store(true)
			_ = f.l.Close()
		}
		reset(in)
		return
	}
	broken, breakUp := context.WithCancel(ctx)
	defer breakUp()
	stop := context.AfterFunc(broken, func() { reset(in); reset(out) })
	var both sync.WaitGroup
	both.Go(func() { copyTo(out, in, breakUp) })
	both.Go(func() { copyTo(in, out, breakUp) })
	both.Wait()
	if stop() {
		_ = in.Close()
		_ = out.Close()
	}
}

// dial connects to the first target that answers; gone says that nobody listens on any.
func dial(ctx context.Context, targets []netip.AddrPort) (conn *net.TCPConn, gone bool, err error) {
	d := net.Dialer{Timeout: dialTimeout}
	gone = true
	for _, to := range targets {
		c, failed := d.DialContext(ctx, "tcp", to.String())
		if failed == nil {
			return c.(*net.TCPConn), false, nil //nolint:forcetypeassert // a TCP network gives no other
		}
		gone = gone && errors.Is(failed, syscall.ECONNREFUSED)
		err = errors.Join(err, failed)
	}
	return nil, gone, err
}

// copyTo copies until the end of from and passes it on; an error breaks the pair up.
func copyTo(to, from *net.TCPConn, breakUp func()) {
	// The plain interfaces hide ReadFrom and WriteTo, which would splice.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, copyBuffer))
	if err == nil {
		err = to.CloseWrite()
	}
	// A peer that has closed both ways already has nothing more to be told.
	if err != nil && !errors.Is(err, syscall.ENOTCONN) {
		breakUp()
	}
}

// reset closes c so that its peer is told that something broke.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// limit counts the connections of all forwards.
type limit struct{ places chan struct{} }

func newLimit() *limit { return &limit{places: make(chan struct{}, maxConns)} }

func (l *limit) take() bool {
	select {
	case l.places <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l *limit) give() { <-l.places }
