package portproxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

func TestP08_PortsThatAreNotPublicAskForTheTrafficToken(t *testing.T) {
	c := newChain(t, rawGuest(t, echoHead))
	c.with(func() { c.targets["abc"] = AgentTarget{TrafficToken: "secret"} })
	res, body := c.get("/", byName)
	assert.Equal(t, http.StatusForbidden, res.StatusCode)
	assert.JSONEq(t, `{"sandboxId":"abc","message":"The traffic access token is missing or wrong, in the header E2b-Traffic-Access-Token","code":403}`, body)
	for token, code := range map[string]int{"wrong": 403, "secre": 403, "secret2": 403, "Secret": 403, "secret": 200} {
		res, body := c.get("/", byName, "e2b-traffic-access-token: "+token)
		assert.Equal(t, code, res.StatusCode, token)
		assert.NotContains(t, body, "secret", "it does not reach the guest")
	}
	res, _ = c.get("/", "Host: 49983-abc.x")
	assert.Equal(t, http.StatusOK, res.StatusCode, "the guest daemon has a token of its own")
}

func TestP08_ResumeWakesOnceAndOnlyForWhoMay(t *testing.T) {
	c := newChain(t, rawGuest(t, echoHead))
	var calls atomic.Int32
	begun, awake := make(chan struct{}), make(chan struct{})
	c.with(func() {
		c.targets["abc"], c.errs["abc"] = AgentTarget{TrafficToken: "secret"}, ErrPaused
		c.resume = func(ctx context.Context, id string) error {
			assert.Equal(t, "abc", id)
			deadline, ok := ctx.Deadline()
			assert.True(t, ok)
			assert.LessOrEqual(t, time.Until(deadline), ResumeTimeout)
			if calls.Add(1) == 1 {
				close(begun)
			}
			<-awake
			c.with(func() { delete(c.errs, "abc") })
			return nil
		}
	})
	res, _ := c.get("/", byName)
	assert.Equal(t, http.StatusForbidden, res.StatusCode)
	assert.Zero(t, calls.Load(), "who has no token wakes nobody")

	// The first client goes away; what it began goes on, for the others.
	first, _ := c.raw("GET / HTTP/1.1", byName, "e2b-traffic-access-token: secret")
	<-begun
	require.NoError(t, first.Close())
	var others sync.WaitGroup
	for range 5 {
		others.Go(func() {
			res, _ := c.get("/", byName, "e2b-traffic-access-token: secret")
			assert.Equal(t, http.StatusOK, res.StatusCode)
		})
	}
	time.Sleep(100 * time.Millisecond) // they arrive; one that comes later finds it awake and changes nothing
	close(awake)
	others.Wait()
	assert.Equal(t, int32(1), calls.Load())
}

// Who began to wake a sandbox may go away: others wait for it.
func TestP08_ResumeOutlivesTheClientThatBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &waker{resumer: resumerFunc(func(ctx context.Context, _ string) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(5 * time.Second):
				return nil
			}
		})}
		first, leave := context.WithCancel(t.Context())
		var waiting sync.WaitGroup
		waiting.Go(func() { assert.ErrorIs(t, w.wake(first, "abc"), context.Canceled) })
		time.Sleep(time.Second)
		waiting.Go(func() { assert.NoError(t, w.wake(t.Context(), "abc")) })
		time.Sleep(time.Second)
		leave()
		waiting.Wait()
	})
}

func TestP08_ResumeThatFailsSaysWhy(t *testing.T) {
	c := newChain(t, rawGuest(t, echoHead))
	var failure error
	c.with(func() {
		c.errs["abc"] = ErrPaused
		c.resume = func(context.Context, string) error { return failure }
	})
	for err, code := range map[error]int{
		ErrDenied: http.StatusForbidden, ErrNotFound: http.StatusBadGateway, ErrTransition: http.StatusConflict, ErrUnreachable: http.StatusServiceUnavailable,
		errors.New("secret"): http.StatusInternalServerError,
	} {
		failure = err
		res, body := c.get("/", byName)
		assert.Equal(t, code, res.StatusCode, body)
		assert.NotContains(t, body, "secret")
	}
	// Who comes to a sandbox that nobody can wake finds it gone.
	res, err := (&waker{}).wake(t.Context(), "abc"), ErrPaused
	assert.Equal(t, err, res)
	assert.Equal(t, http.StatusBadGateway, lookupAnswer(route{id: "abc"}, ErrPaused).Code)
}

func TestP08_ResumeHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &waker{resumer: resumerFunc(func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		})}
		begin := time.Now()
		err := w.wake(t.Context(), "abc")
		assert.Equal(t, ResumeTimeout, time.Since(begin))
		assert.Equal(t, http.StatusGatewayTimeout, lookupAnswer(route{id: "abc"}, err).Code)
	})
}

func TestP05_AClosedPortIsAnsweredAfterThreeAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		begin := time.Now()
		g := &guest{dial: func(context.Context, string, string) (net.Conn, error) {
			at = append(at, time.Since(begin))
			return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}}
		_, err := g.dialRetrying(t.Context(), "tcp", "10.11.0.1:80")
		require.Error(t, err)
		assert.Equal(t, []time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond}, at)
	})
}

func TestP08_ASandboxHasSoManyExchangesAtOnce(t *testing.T) {
	hang := make(chan struct{})
	g := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			upgradeGuest(func(conn net.Conn, _ *bufio.Reader) { _, _ = io.Copy(io.Discard, conn) }).ServeHTTP(w, r)
			return
		}
		if r.URL.Path == "/hang" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-hang
		}
	})
	c := newHTTPChain(t, g, func(c *chain) { c.most = 3 })
	defer close(hang)
	c.with(func() { c.addrs["other"] = netip.MustParseAddr("127.0.0.1") })
	tunnel, _ := c.upgrade()
	one, r := c.raw("GET /hang HTTP/1.1", byName)
	_, err := r.ReadString('\n')
	require.NoError(t, err)
	two, r := c.raw("GET /hang HTTP/1.1", byName)
	_, err = r.ReadString('\n')
	require.NoError(t, err)
	res, body := c.get("/", byName)
	assert.Equal(t, http.StatusTooManyRequests, res.StatusCode)
	assert.JSONEq(t, `{"sandboxId":"abc","message":"The sandbox has too many connections","code":429}`, body)
	res, _ = c.get("/", "Host: 8080-other.x")
	assert.Equal(t, http.StatusOK, res.StatusCode, "a neighbour has its own count")
	// Each of them makes room when it ends.
	for _, conn := range []net.Conn{tunnel, one, two} {
		require.NoError(t, conn.Close())
	}
	g2, _ := c.host.guests.Load("abc")
	assert.Eventually(t, func() bool { return g2.(*guest).inFlight.Load() == 0 }, wait, 5*time.Millisecond)
	res, _ = c.get("/", byName)
	assert.Equal(t, http.StatusOK, res.StatusCode)
}

// A lookup's answer never holds what only we know.
func TestP08_NoAnswerHoldsAnInternalAddress(t *testing.T) {
	c := newHTTPChain(t, http.NotFoundHandler())
	for _, failure := range []error{
		&net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 11, 0, 7), Port: 80}, Err: errors.New("connection refused")},
		&net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 11, 0, 7), Port: 80}, Err: context.DeadlineExceeded},
		&net.OpError{Op: "read", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 11, 0, 7), Port: 80}, Err: errors.New("connection reset by peer")},
		errors.New("no route to 10.11.0.7"),
	} {
		c.with(func() { c.dial = func(context.Context, string, string) (net.Conn, error) { return nil, failure } })
		for _, accept := range []string{"application/json", "text/html"} {
			res, body := c.get("/", byName, "Accept: "+accept)
			assert.GreaterOrEqual(t, res.StatusCode, 500)
			assert.NotContains(t, body, "10.11.")
			assert.Contains(t, body, "abc")
			assert.Contains(t, body, "8080")
			assert.NotContains(t, res.Header, transport.AgentTokenHeader)
		}
	}
}
