package portproxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// idleTunnels is how many WebSockets are opened, and idleBound how much memory each may cost edge and agent
// together. Measured are 10 KiB; 50 KiB let a host with 1 GiB for the proxy hold 20,000.
const (
	idleTunnels = 1000
	idleBound   = 50 << 10
)

// silent takes upgrades and then says nothing until the other end closes; "echo" gets each line back.
func silent(t testing.TB) int {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, rw)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// openTunnels opens n upgraded connections through edge, each of which has carried a little.
func openTunnels(t testing.TB, edge string, port, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := worker; i < n; i += 8 {
				conn, err := net.Dial("tcp", edge)
				if !assert.NoError(t, err) {
					return
				}
				conns[i] = conn
				_ = conn.SetDeadline(time.Now().Add(5 * wait))
				_, _ = fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %d-abc.x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCookie: %0500d\r\n\r\n", port, i)
				r := bufio.NewReader(conn)
				res, err := http.ReadResponse(r, nil)
				if !assert.NoError(t, err) || !assert.Equal(t, http.StatusSwitchingProtocols, res.StatusCode) {
					return
				}
				_, _ = io.WriteString(conn, "hello\n")
				_, err = r.ReadString('\n')
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	})
	return conns
}

// perTunnel measures what an idle tunnel costs each hop, in bytes of heap and stacks.
func perTunnel(t testing.TB) (atEdge, atAgent int) {
	t.Helper()
	port := silent(t)
	edge, agent := startChain(t)
	openTunnels(t, edge.addr, port, 8)
	edgeBefore, _ := edge.memory(t, true)
	agentBefore, _ := agent.memory(t, true)
	openTunnels(t, edge.addr, port, idleTunnels)
	edgeAfter, _ := edge.memory(t, true)
	agentAfter, _ := agent.memory(t, true)
	return (edgeAfter - edgeBefore) / idleTunnels, (agentAfter - agentBefore) / idleTunnels
}

func TestP07_AnIdleWebSocketCostsLittle(t *testing.T) {
	atEdge, atAgent := perTunnel(t)
	t.Logf("edge %d bytes, agent %d bytes per tunnel", atEdge, atAgent)
	assert.Less(t, atEdge+atAgent, idleBound)
	assert.Positive(t, atEdge)
	assert.Positive(t, atAgent)
}

func BenchmarkIdleTunnel(b *testing.B) {
	for b.Loop() {
		atEdge, atAgent := perTunnel(b)
		b.ReportMetric(float64(atEdge)/1024, "edge-KiB/tunnel")
		b.ReportMetric(float64(atAgent)/1024, "agent-KiB/tunnel")
	}
}

// A gigabyte in each direction leaves edge and agent as small as they were.
func TestP07_AGigabytePassesInConstantMemory(t *testing.T) {
	need.Short(t, "moves two gigabytes")
	const size, bound = 1 << 30, 64 << 20
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Got", fmt.Sprint(n))
		buf := make([]byte, 256<<10)
		for sent := 0; sent < size; sent += len(buf) {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	port := s.Listener.Addr().(*net.TCPAddr).Port
	edge, agent := startChain(t)
	most := map[string]int{}
	look := func() {
		for name, p := range map[string]chainProcess{"edge": edge, "agent": agent} {
			_, resident := p.memory(t, false)
			most[name] = max(most[name], resident)
		}
	}
	conn, err := net.Dial("tcp", edge.addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(15*wait)))
	_, err = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %d-abc.x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", port, size)
	require.NoError(t, err)
	buf := make([]byte, 256<<10)
	for sent := 0; sent < size; sent += len(buf) {
		_, err = conn.Write(buf)
		require.NoError(t, err)
		if sent%(64<<20) == 0 {
			look()
		}
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	assert.Equal(t, fmt.Sprint(size), res.Header.Get("X-Got"))
	got := int64(0)
	for {
		n, err := io.CopyN(io.Discard, res.Body, 64<<20)
		got += n
		look()
		if err != nil {
			break
		}
	}
	assert.EqualValues(t, size, got)
	t.Logf("resident at most: %v", most)
	for name, resident := range most {
		assert.Less(t, resident, bound, name)
	}
}
