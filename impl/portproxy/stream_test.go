package portproxy

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/transport"
)

// upgradeGuest answers an upgrade and hands the connection to serve.
func upgradeGuest(serve func(net.Conn, *bufio.Reader)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		serve(conn, rw.Reader)
	})
}

func (c *chain) upgrade() (net.Conn, *bufio.Reader) {
	c.t.Helper()
	conn, r := c.raw("GET /ws HTTP/1.1", byName, "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: k")
	res, err := http.ReadResponse(r, nil)
	require.NoError(c.t, err)
	require.Equal(c.t, http.StatusSwitchingProtocols, res.StatusCode)
	assert.Equal(c.t, "x", res.Header.Get("Sec-WebSocket-Accept"))
	assert.Empty(c.t, res.Header.Values("Content-Type"))
	return conn, r
}

func TestP07_UpgradedConnectionsCarryBytesBothWays(t *testing.T) {
	c := newHTTPChain(t, upgradeGuest(func(conn net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(conn, "hello\n") // the guest may speak first
		_, _ = io.Copy(conn, r)
	}))
	conn, r := c.upgrade()
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "hello\n", line)
	for i := range 100 {
		_, err := fmt.Fprintf(conn, "ping %d\n", i)
		require.NoError(t, err)
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprintf("ping %d\n", i), line)
	}
}

func TestP07_AHalfClosedConnectionKeepsItsOtherHalf(t *testing.T) {
	c := newHTTPChain(t, upgradeGuest(func(conn net.Conn, r *bufio.Reader) {
		n, _ := io.Copy(io.Discard, r) // until the client has closed its half
		_, _ = fmt.Fprintf(conn, "got %d bytes", n)
	}))
	conn, r := c.upgrade()
	_, err := conn.Write(make([]byte, 100_000))
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Equal(t, "got 100000 bytes", string(rest))
}

func TestP07_EventsArriveAtOnce(t *testing.T) {
	next := make(chan string)
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_ = http.NewResponseController(w).Flush() // the header alone, before any event
		for event := range next {
			_, _ = io.WriteString(w, event)
			_ = http.NewResponseController(w).Flush()
		}
	}))
	_, r := c.raw("GET / HTTP/1.1", byName)
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	defer res.Body.Close()
	for i := range 5 {
		event := fmt.Sprintf("event %d\n", i)
		next <- event
		got := make([]byte, len(event))
		_, err := io.ReadFull(res.Body, got)
		require.NoError(t, err)
		assert.Equal(t, event, string(got))
	}
	close(next)
}

// A program may answer while it is still being sent to.
func TestP07_BothDirectionsFlowAtOnce(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	}))
	conn, r := c.raw("POST / HTTP/1.1", byName, "Transfer-Encoding: chunked")
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	defer res.Body.Close()
	for i := range 20 {
		word := fmt.Sprintf("word %02d", i)
		_, err := fmt.Fprintf(conn, "%x\r\n%s\r\n", len(word), word)
		require.NoError(t, err)
		got := make([]byte, len(word))
		_, err = io.ReadFull(res.Body, got)
		require.NoError(t, err)
		require.Equal(t, word, string(got))
	}
	_, err = io.WriteString(conn, "0\r\n\r\n")
	require.NoError(t, err)
	rest, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	assert.Empty(t, rest)
}

func TestP07_ARefusalBeforeTheEndOfAnUploadArrives(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	}))
	for range 10 {
		conn, r := c.raw("POST / HTTP/1.1", byName, fmt.Sprintf("Content-Length: %d", 1<<30))
		var sending sync.WaitGroup
		sending.Go(func() { _, _ = io.CopyN(conn, &counter{left: 1 << 30, sum: sha256.New()}, 1<<30) }) // until the other side closes
		res, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		assert.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		assert.Equal(t, "too much\n", string(body))
		require.NoError(t, conn.Close())
		sending.Wait()
	}
}

// counter yields n bytes that differ from place to place, and hashes what it has yielded.
type counter struct {
	left int64
	next uint64
	sum  hash.Hash
}

func (s *counter) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p))&^7, s.left)
	if n == 0 {
		return 0, io.ErrShortBuffer
	}
	for i := int64(0); i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], s.next)
		s.next++
	}
	s.left -= n
	s.sum.Write(p[:n])
	return int(n), nil
}

func TestP07_LargeBodiesAreUnchangedBothWays(t *testing.T) {
	const size = 32 << 20
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, _ := io.Copy(sum, r.Body)
		w.Header().Set("X-Got", fmt.Sprintf("%d %d %x", r.ContentLength, n, sum.Sum(nil)))
		w.Header().Set("Trailer", "X-Sum")
		out := &counter{left: size, sum: sha256.New()}
		_, _ = io.Copy(w, out)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", out.sum.Sum(nil)))
	}))
	tr := transport.NewProxyTransport()
	defer tr.CloseIdleConnections()
	for _, length := range []int64{size, -1} {
		up := &counter{left: size, sum: sha256.New()}
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+c.edge, up)
		require.NoError(t, err)
		req.Host, req.ContentLength = "8080-abc.x", length
		res, err := tr.RoundTrip(req)
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprintf("%d %d %x", length, size, up.sum.Sum(nil)), res.Header.Get("X-Got"))
		sum := sha256.New()
		n, err := io.Copy(sum, res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.EqualValues(t, size, n)
		assert.Equal(t, fmt.Sprintf("%x", sum.Sum(nil)), res.Trailer.Get("X-Sum"))
	}
}

func TestP07_ExpectContinueAsksTheGuest(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusRequestEntityTooLarge) // without reading, so without "100 Continue"
			return
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	}))
	conn, r := c.raw("POST /refuse HTTP/1.1", byName, "Content-Length: 5", "Expect: 100-continue")
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	assert.Contains(t, line, "413", "the guest's refusal comes before any body is asked for")
	require.NoError(t, conn.Close())

	conn, r = c.raw("POST /take HTTP/1.1", byName, "Content-Length: 5", "Expect: 100-continue", "Connection: close")
	line, err = r.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "100 Continue")
	_, err = io.WriteString(conn, "hello")
	require.NoError(t, err)
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Contains(t, string(rest), "200 OK")
	assert.True(t, strings.HasSuffix(string(rest), "hello"), string(rest))
}

func TestP07_HeadHasALengthAndNoBody(t *testing.T) {
	c := newChain(t, rawGuest(t, func(string) string { return "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nConnection: close\r\n\r\n" }))
	res, body := c.ask("HEAD / HTTP/1.1", byName)
	assert.Equal(t, int64(1234), res.ContentLength)
	assert.Empty(t, body)
}

// Whether an empty body has a length is the guest's to say, also where its end comes with the header.
func TestP07_AnEmptyBodyOfUnknownLengthStaysOne(t *testing.T) {
	c := newChain(t, rawGuest(t, func(string) string { return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" }))
	for range 5 {
		res, body := c.get("/", byName)
		assert.Empty(t, body)
		assert.Equal(t, []string{"chunked"}, res.TransferEncoding)
	}
}

func TestT07_TerminalsAndPortsShareNoConnection(t *testing.T) {
	var mu sync.Mutex
	peers := map[string]map[string]bool{} // sandbox port → the agent's peers
	see := func(r *http.Request) {
		port := strings.Split(r.URL.Path, "/")[3]
		mu.Lock()
		defer mu.Unlock()
		if peers[port] == nil {
			peers[port] = map[string]bool{}
		}
		peers[port][r.RemoteAddr] = true
	}
	c := newHTTPChain(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), func(c *chain) { c.seen = see })
	for range 10 { // each finds the other's connections idle, and must not take them
		c.get("/", "Host: 49983-abc.x")
		c.get("/", byName)
	}
	mu.Lock()
	defer mu.Unlock()
	assert.Len(t, peers["49983"], 1, "connections are kept")
	assert.Len(t, peers["8080"], 1, "connections are kept")
	for peer := range peers["49983"] {
		assert.NotContains(t, peers["8080"], peer)
	}
}

// A body whose length is known is held back no more than one whose is not, in either direction.
func TestP07_BytesOfALongBodyArriveAtOnce(t *testing.T) {
	next := make(chan string)
	guestGot := make(chan string, 10)
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			guestGot <- "header"
			buf := make([]byte, 5)
			for range 2 {
				_, _ = io.ReadFull(r.Body, buf)
				guestGot <- string(buf)
			}
			return
		}
		w.Header().Set("Content-Length", "10")
		_ = http.NewResponseController(w).Flush()
		for part := range next {
			_, _ = io.WriteString(w, part)
			_ = http.NewResponseController(w).Flush()
		}
	}))
	_, r := c.raw("GET / HTTP/1.1", byName)
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	for _, part := range []string{"12345", "67890"} {
		next <- part
		got := make([]byte, 5)
		_, err := io.ReadFull(res.Body, got)
		require.NoError(t, err)
		assert.Equal(t, part, string(got))
	}
	close(next)

	conn, _ := c.raw("POST / HTTP/1.1", byName, "Content-Length: 10")
	assert.Equal(t, "header", <-guestGot)
	for _, part := range []string{"12345", "67890"} {
		_, err := io.WriteString(conn, part)
		require.NoError(t, err)
		select {
		case got := <-guestGot:
			assert.Equal(t, part, got)
		case <-time.After(wait):
			require.FailNow(t, "it was held back")
		}
	}
}

// A guest that gives up is told of at once, also while the client pauses in its upload.
func TestP08_AGuestThatBreaksOffAnUploadIsToldOf(t *testing.T) {
	c := newChain(t, rawGuest(t, func(string) string { return "" }))
	_, r := c.raw("POST / HTTP/1.1", byName, "Content-Length: 100", "", "part")
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusBadGateway, res.StatusCode)
	assert.True(t, res.Close, "what is left of the upload would be taken for the next request")
}
