package portproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

func TestP08_KillingASandboxResetsItsConnections(t *testing.T) {
	hang := make(chan struct{})
	var guestSaw sync.WaitGroup
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ws":
			guestSaw.Add(1)
			upgradeGuest(func(_ net.Conn, r *bufio.Reader) {
				defer guestSaw.Done()
				_, _ = r.ReadByte() // until the connection ends
			}).ServeHTTP(w, r)
		case "/stream":
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			<-hang
		case "/silent":
			<-hang
		}
	}))
	defer close(hang)
	c.with(func() { c.addrs["other"] = netip.MustParseAddr("127.0.0.1") })
	ws, wsReader := c.upgrade()
	defer ws.Close()
	_, stream := c.raw("GET /stream HTTP/1.1", byName)
	res, err := http.ReadResponse(stream, nil)
	require.NoError(t, err)
	_, err = io.ReadFull(res.Body, make([]byte, 5))
	require.NoError(t, err)
	_, silent := c.raw("GET /silent HTTP/1.1", byName)
	_, neighbour := c.raw("GET /stream HTTP/1.1", "Host: 8080-other.x")
	resOther, err := http.ReadResponse(neighbour, nil)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return c.connections("abc") == 3 }, wait, 5*time.Millisecond)

	c.kill("abc")
	_, err = wsReader.ReadByte()
	assert.Error(t, err, "the tunnel ends")
	_, err = io.ReadAll(res.Body)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "the stream ends, and not as if it were complete")
	resSilent, err := http.ReadResponse(silent, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resSilent.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusBadGateway, resSilent.StatusCode)
	assert.JSONEq(t, `{"sandboxId":"abc","message":"The sandbox was not found","code":502}`, string(body))
	guestSaw.Wait()
	_, err = io.ReadFull(resOther.Body, make([]byte, 5))
	assert.NoError(t, err, "the neighbour goes on")
	assert.Equal(t, 1, c.connections("other"))
	resAfter, _ := c.get("/", byName)
	assert.Equal(t, http.StatusBadGateway, resAfter.StatusCode)
	c.kill("other") // ends the neighbour's handler
}

// connections returns how many connections to a sandbox live.
func (c *chain) connections(id string) int {
	g, ok := c.host.guests.Load(id)
	if !ok {
		return 0
	}
	g.(*guest).mu.Lock()
	defer g.(*guest).mu.Unlock()
	return len(g.(*guest).conns)
}

func TestP06_TheCacheNeverOutlivesItsSandbox(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	count := func() (n int) {
		c.host.guests.Range(func(any, any) bool { n++; return true })
		return n
	}
	for i := range 3 { // names and ports are the client's to choose
		c.get("/", byName)
		c.get("/", fmt.Sprintf("Host: 8080-abc.n%d", i))
		c.get("/", fmt.Sprintf("Host: %d-abc.other", 81+i))
	}
	assert.Equal(t, 1, count())
	assert.Eventually(t, func() bool { return c.connections("abc") == 0 }, wait, 5*time.Millisecond, "connections to a guest are soon let go")

	// Another address is another life.
	old, _ := c.host.guests.Load("abc")
	c.with(func() { c.addrs["abc"] = netip.MustParseAddr("127.0.0.2") })
	c.get("/", byName)
	assert.True(t, old.(*guest).isEvicted())
	assert.Equal(t, 1, count())

	c.kill("abc")
	_, ok := c.host.guests.Load("abc")
	assert.False(t, ok)
	c.host.EvictProxy("abc") // twice does no harm
}

// The sandbox ends between the lookup of a request and the making of its cache entry.
func TestP06_AnEntryMadeTooLateIsTakenBack(t *testing.T) {
	var h *Host
	ended := false
	h = NewHost(HostConfig{Logger: slog.New(slog.DiscardHandler), Lookup: func(context.Context, string) (netip.Addr, error) {
		if ended {
			return netip.Addr{}, ErrNotFound
		}
		ended = true
		h.EvictProxy("abc")
		return netip.MustParseAddr("127.0.0.1"), nil
	}})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/proxy/abc/80/", nil))
	assert.Equal(t, http.StatusBadGateway, w.Code)
	_, ok := h.guests.Load("abc")
	assert.False(t, ok)
}

func TestP06_ARequestThatMeetsAKillLeavesNoCacheBehind(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	for i := range 200 {
		id := fmt.Sprintf("s%d", i)
		c.with(func() { c.addrs[id] = netip.MustParseAddr("127.0.0.1") })
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/proxy/"+id+"/80/", nil)
				c.host.ServeHTTP(w, r)
			})
		}
		wg.Go(func() { c.kill(id) })
		wg.Wait()
		_, ok := c.host.guests.Load(id)
		require.False(t, ok, id)
	}
}

// The control plane ends while a guest thinks: what its requests' contexts say then is no answer of the guest's.
func TestP08_TheEndOfTheServerIsNoAnswer(t *testing.T) {
	asked := make(chan struct{})
	c := newHTTPChain(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	life, end := context.WithCancel(t.Context())
	bulk := transport.NewProxyTransport()
	t.Cleanup(bulk.CloseIdleConnections)
	agent, err := url.Parse(c.agent)
	require.NoError(t, err)
	edge := edgeTo(t, agent, bulk)
	addr, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		edge.ServeHTTP(w, r.WithContext(ctx))
	}), nil)
	go func() { <-asked; end() }()
	answers, err := talkRaw(t, addr, "GET / HTTP/1.1\r\n"+byName+"\r\n\r\n")
	require.Empty(t, answers)
	require.NoError(t, err)
}

// talkRaw sends text and returns all that comes back.
func talkRaw(t *testing.T, addr, text string) (string, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(wait)))
	_, err = io.WriteString(conn, text)
	require.NoError(t, err)
	all, err := io.ReadAll(conn)
	return string(all), err
}
