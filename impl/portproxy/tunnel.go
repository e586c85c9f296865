package portproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wrenn/impl/transport"
)

// DefaultTunnelIdle is how long an upgraded connection may carry no byte either way. A WebSocket that is
// merely quiet must live (a notebook left open over lunch), while one whose two ends have both forgotten
// it holds two descriptors per hop; vanished hosts are found by TCP's probes long before.
const DefaultTunnelIdle = 2 * time.Hour

// upgrade is what becomes of a request that wants to switch its connection to another protocol.
type upgrade struct {
	asked string   // the protocol
	conn  net.Conn // the one that the request went out on
	res   *http.Response
}

// check says whether the guest has switched to what it was asked for.
func (up *upgrade) check() error {
	if got := up.res.Header.Get("Upgrade"); up.asked == "" || !strings.EqualFold(up.asked, got) {
		return errors.Join(fmt.Errorf("guest switched to protocol %.40q where %.40q was asked for", got, up.asked), up.res.Body.Close())
	}
	return nil
}

// tunnels are connections of one hop that carry bytes.
type tunnels struct {
	idle    time.Duration // how long one may carry none; 0 means for ever
	running sync.WaitGroup

	mu     sync.Mutex
	open   map[*tunnel]struct{}
	closed bool
}

// tunnel is one of them: what the client sends goes to the guest, and the other way.
type tunnel struct {
	client, guest net.Conn
	flow          *transport.Flow // is told what goes to the client; may be nil
	moved         [2]atomic.Int64 // when each direction last carried a byte, in nanoseconds since 1970
	left          atomic.Int32    // directions that have not ended
	refused       atomic.Bool     // the guest takes no more; what it is sent is not read, so that a close would be a reset
	pipe          bool            // its client ends it by a reset
	timer         *time.Timer
	done          func()
}

// start takes over w's connection, answers with up's 101 and joins it with the guest's. It returns at once,
// so that nothing of the request is held; done is called when the tunnel has ended.
func (ts *tunnels) start(w http.ResponseWriter, up *upgrade, done func()) error {
	if err := up.check(); err != nil {
		return err
	}
	early, err := unread(up)
	if err != nil {
		return errors.Join(err, up.conn.Close())
	}
	client, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return errors.Join(fmt.Errorf("take over the client's connection: %w", err), up.conn.Close())
	}
	var head bytes.Buffer
	up.res.Body = nil
	_ = up.res.Write(&head) // to memory
	head.Write(early)
	_, failed := client.Write(head.Bytes())
	if sent, _ := rw.Peek(rw.Reader.Buffered()); failed == nil && len(sent) > 0 {
		_, failed = up.conn.Write(sent)
	}
	t := &tunnel{client: client, guest: up.conn, done: done}
	if failed == nil && ts.add(t) {
		ts.join(t)
		return nil
	}
	t.close(true) // by which the client is told
	done()
	return nil
}

// join carries bytes through t, which has been added, until both directions have ended or one has failed.
func (ts *tunnels) join(t *tunnel) {
	t.left.Store(2)
	if c, ok := t.guest.(*guestConn); ok {
		c.onEvict(func() { t.close(true) }) // a client that does not read would not hear of it
	}
	go func() {
		defer ts.running.Done()
		ts.carryUp(t)
	}()
	go func() {
		defer ts.running.Done()
		ts.carryDown(t)
	}()
}

// carryUp carries what the client sends. A guest that takes no more may have answered, so that its own direction has the
// last word.
func (ts *tunnels) carryUp(t *tunnel) {
	err := pump(t.guest, t.client, func(int) { ts.noteMove(&t.moved[0]) }, t.splices())
	if err == nil && closeWrite(t.guest) != nil {
		err = errWrite
	}
	t.refused.Store(errors.Is(err, errWrite))
	switch {
	case err != nil && !errors.Is(err, errWrite):
		ts.end(t, !t.pipe)
	case t.left.Add(-1) == 0:
		ts.end(t, err != nil)
	case waitBroken(t.client):
		ts.end(t, !t.pipe)
	}
}

// splices says whether the kernel may carry its floods: nobody looks at them.
func (t *tunnel) splices() bool { return t.pipe && t.flow == nil }

// carryDown carries what the guest sends. What has come of it arrives, however it ends.
func (ts *tunnels) carryDown(t *tunnel) {
	err := pump(t.client, t.guest, func(n int) {
		if n > 0 {
			t.flow.Sent(n)
		}
		ts.noteMove(&t.moved[1])
	}, t.splices())
	if err == nil {
		if err = closeWrite(t.client); t.left.Add(-1) != 0 && err == nil {
			return
		}
	}
	ts.end(t, err != nil || t.refused.Load())
}

func (ts *tunnels) noteMove(moved *atomic.Int64) {
	if ts.idle > 0 {
		moved.Store(time.Now().UnixNano())
	}
}

func (ts *tunnels) end(t *tunnel, reset bool) {
	if reset {
		waitSent(t.client)
	}
	t.close(reset)
	ts.remove(t)
}

// unread returns what the transport has read of the connection beyond the answer's header. A deadline that
// has passed makes the read end where the connection itself would have to be asked.
func unread(up *upgrade) ([]byte, error) {
	if err := up.conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return nil, fmt.Errorf("set a deadline: %w", err)
	}
	early, err := io.ReadAll(up.res.Body)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("read what came with the answer: %w", err)
	}
	return early, up.conn.SetReadDeadline(time.Time{})
}

func (ts *tunnels) add(t *tunnel) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.closed {
		return false
	}
	if ts.open == nil {
		ts.open = map[*tunnel]struct{}{}
	}
	ts.open[t] = struct{}{}
	ts.running.Add(2) // here, so that close waits for whatever it has seen
	now := time.Now().UnixNano()
	t.moved[0].Store(now)
	t.moved[1].Store(now)
	if ts.idle > 0 {
		t.timer = time.AfterFunc(ts.idle, func() { ts.check(t) })
	}
	return true
}

func (ts *tunnels) remove(t *tunnel) {
	ts.mu.Lock()
	_, ok := ts.open[t]
	delete(ts.open, t)
	ts.mu.Unlock()
	if !ok {
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	t.done()
}

// check ends t if neither direction has moved for as long as is allowed, else it looks again when that
// could be so.
func (ts *tunnels) check(t *tunnel) {
	last := time.Unix(0, max(t.moved[0].Load(), t.moved[1].Load()))
	if left := ts.idle - time.Since(last); left > 0 {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		if _, ok := ts.open[t]; ok {
			t.timer.Reset(left)
		}
		return
	}
	t.close(false)
}

// close ends all tunnels, and waits until they have; no new one begins.
func (ts *tunnels) close() {
	ts.mu.Lock()
	ts.closed = true
	for t := range ts.open {
		t.close(true)
	}
	ts.mu.Unlock()
	ts.running.Wait()
}

// close closes both ends; reset says that they are reset, so that an end by accident does not look like a
// proper one.
func (t *tunnel) close(reset bool) {
	for _, c := range []net.Conn{t.client, t.guest} {
		if l, ok := c.(interface{ SetLinger(int) error }); ok && reset {
			_ = l.SetLinger(0)
		}
		_ = c.Close()
	}
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
