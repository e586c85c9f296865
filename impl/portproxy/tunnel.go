package portproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
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

// errUpgraded is how a round trip that ended in "101 Switching Protocols" leaves a ReverseProxy.
var errUpgraded = errors.New("the connection was upgraded")

// upgrade collects what becomes of a request that wants to upgrade its connection.
type upgrade struct {
	conn net.Conn // the one that the request went out on
	res  *http.Response
}

type upgradeKey struct{}

// upgrader is a RoundTripper that keeps an answer of 101 from the ReverseProxy, which would hold two
// goroutines with 32 KiB of buffer each for as long as a tunnel lives, and the handler's with all that a
// request needs.
type upgrader struct{ http.RoundTripper }

// RoundTrip makes one exchange.
func (u upgrader) RoundTrip(r *http.Request) (*http.Response, error) {
	up, ok := r.Context().Value(upgradeKey{}).(*upgrade)
	if !ok {
		res, err := u.RoundTripper.RoundTrip(r)
		if w, ok := r.Context().Value(verbatimKey{}).(*verbatim); ok && err == nil {
			w.expect(res)
		}
		return res, err
	}
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { up.conn = info.Conn }}
	res, err := u.RoundTripper.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		return res, err
	}
	if asked, got := r.Header.Get("Upgrade"), res.Header.Get("Upgrade"); !strings.EqualFold(asked, got) {
		return nil, errors.Join(fmt.Errorf("guest switched to protocol %.40q where %.40q was asked for", got, asked), res.Body.Close())
	}
	up.res = res
	return nil, errUpgraded
}

// wantsUpgrade says whether r asks for another protocol.
func wantsUpgrade(r *http.Request) bool {
	for _, v := range r.Header["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true
			}
		}
	}
	return false
}

// tunnels are the upgraded connections of one hop.
type tunnels struct {
	idle    time.Duration
	running sync.WaitGroup

	mu     sync.Mutex
	open   map[*tunnel]struct{}
	closed bool
}

// tunnel is one upgraded connection: what the client sends goes to the guest, and the other way.
type tunnel struct {
	client, guest net.Conn
	moved         [2]atomic.Int64 // when each direction last carried a byte, in nanoseconds since 1970
	left          atomic.Int32    // directions that have not ended
	timer         *time.Timer
	done          func()
}

// start takes over w's connection, answers with up's 101 and joins it with the guest's. It returns at once,
// so that nothing of the request is held; done is called when the tunnel has ended.
func (ts *tunnels) start(w http.ResponseWriter, up *upgrade, done func()) error {
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
	for i, way := range [][2]net.Conn{{t.client, t.guest}, {t.guest, t.client}} {
		go func() {
			defer ts.running.Done()
			err := pump(way[1], way[0], &t.moved[i])
			if err == nil {
				err = closeWrite(way[1])
			}
			if t.left.Add(-1) == 0 || err != nil {
				t.close(err != nil)
				ts.remove(t)
			}
		}()
	}
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
	t.timer = time.AfterFunc(ts.idle, func() { ts.check(t) })
	return true
}

func (ts *tunnels) remove(t *tunnel) {
	ts.mu.Lock()
	_, ok := ts.open[t]
	delete(ts.open, t)
	ts.mu.Unlock()
	if ok {
		t.timer.Stop()
		t.done()
	}
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

// pass hands a request to proxy such that its answer comes back as the guest sent it, and may begin before
// the body has been read: left to itself, net/http's server would first swallow what is left of the body.
// It calls done when the exchange is over, which for an upgraded connection is later than its return. flow is told
// what is sent to the client.
func (ts *tunnels) pass(proxy *httputil.ReverseProxy, flow *transport.Flow, w http.ResponseWriter, r *http.Request, done func()) {
	_ = http.NewResponseController(w).EnableFullDuplex() // an error means that it cannot be otherwise
	if !wantsUpgrade(r) {
		defer done()
		v := &verbatim{ResponseWriter: w, flow: flow, gather: transport.GatherOf(r)}
		r = r.WithContext(context.WithValue(r.Context(), verbatimKey{}, v))
		v.body = watchBody(r)
		proxy.ServeHTTP(v, r)
		return
	}
	up := &upgrade{}
	defer func() {
		if up.res == nil {
			done()
		}
	}()
	r = r.WithContext(context.WithValue(r.Context(), upgradeKey{}, up))
	proxy.ServeHTTP(&verbatim{ResponseWriter: w}, r)
	if up.res == nil {
		return
	}
	err := proxy.ModifyResponse(up.res)
	if err == nil {
		err = ts.start(w, up, done)
	}
	if err != nil {
		up.res = nil // so that done is called
		proxy.ErrorHandler(w, r, err)
	}
}
