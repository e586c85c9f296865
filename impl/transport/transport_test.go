package transport

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 20 * time.Second

var transports = map[string]func() *http.Transport{
	"rpc":    NewRPCTransport,
	"stream": NewStreamTransport,
}

func TestT04_NoTransportBoundsAWholeExchange(t *testing.T) {
	for name, build := range transports {
		tr := build()
		assert.Zero(t, tr.ResponseHeaderTimeout, name)
		assert.NotZero(t, tr.TLSHandshakeTimeout, name)
		assert.Nil(t, tr.Proxy, name)
		assert.True(t, tr.DisableCompression, name)
		assert.NotSame(t, tr, build(), "each caller has a pool of its own: %s", name)
	}
}

// A server that closed an idle connection before its client does would lose requests.
func TestT06_ClientsCloseIdleConnectionsFirst(t *testing.T) {
	const envdIdle = 640 * time.Second
	for name, build := range transports {
		tr := build()
		assert.Positive(t, tr.IdleConnTimeout, name)
		assert.LessOrEqual(t, tr.IdleConnTimeout, IdleTimeout-10*time.Second, name)
		assert.Less(t, tr.IdleConnTimeout, envdIdle, name)
	}
	for name, tr := range map[string]*Direct{"to agents": NewStreamProxyTransport(), "to the daemon": NewGuestStreamTransport(DialGuest), "boot": NewBootTransport()} {
		assert.Positive(t, tr.idle.life, name)
		assert.LessOrEqual(t, tr.idle.life, IdleTimeout-10*time.Second, name)
		assert.Less(t, tr.idle.life, envdIdle, name)
	}
}

func TestT06_Servers(t *testing.T) {
	api, proxy := NewServer(http.NotFoundHandler()), NewProxyServer(http.NotFoundHandler())
	assert.Equal(t, 10*time.Second, api.ReadHeaderTimeout)
	assert.Equal(t, 10*time.Second, proxy.HeaderTimeout)
	assert.Equal(t, 620*time.Second, api.IdleTimeout)
	assert.Equal(t, 620*time.Second, proxy.IdleTimeout)
	assert.Zero(t, api.ReadTimeout)
	assert.Zero(t, api.WriteTimeout)
}

// serve serves srv on loopback until the test ends, and returns its URL.
func serve(t *testing.T, srv interface {
	Serve(l net.Listener) error
	Shutdown(ctx context.Context) error
	Close() error
}) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(Listen(l, nil)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx) // net/http lingers after some answers
		assert.NoError(t, srv.Close())
		assert.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
	return "http://" + l.Addr().String()
}

func TestT06_ASlowHeaderIsCutOff(t *testing.T) {
	api, proxy := NewServer(http.NotFoundHandler()), NewProxyServer(http.NotFoundHandler())
	api.ReadHeaderTimeout, proxy.HeaderTimeout = 100*time.Millisecond, 100*time.Millisecond // the same setting on a shorter clock
	for _, url := range []string{serve(t, api), serve(t, proxy)} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Now().Add(wait)))
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n")
		require.NoError(t, err)
		answer, err := io.ReadAll(conn)
		require.NoError(t, err, "the server closed, not the test's deadline")
		assert.NotContains(t, string(answer), "404")
	}
}

func TestT01_NothingSpeaksHTTP2(t *testing.T) {
	l, ca := serveTLS(t, NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })))
	for name, build := range transports {
		tr := build()
		tr.TLSClientConfig = &tls.Config{RootCAs: ca, NextProtos: []string{"h2", "http/1.1"}}
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+l, nil)
		require.NoError(t, err)
		res, err := tr.RoundTrip(req)
		require.NoError(t, err, name)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, "HTTP/1.1", string(body), name)
		tr.CloseIdleConnections()
	}
	// A client that speaks nothing else gets nowhere.
	conn, err := tls.Dial("tcp", l, &tls.Config{RootCAs: ca, NextProtos: []string{"h2"}})
	if err == nil {
		_ = conn.Close()
	}
	require.ErrorContains(t, err, "no application protocol")

	// Nor in the clear, where a client starts with HTTP/2's preface.
	for _, plain := range []string{serve(t, NewServer(http.NotFoundHandler())), serve(t, NewProxyServer(http.NotFoundHandler()))} {
		tcp, err := net.Dial("tcp", strings.TrimPrefix(plain, "http://"))
		require.NoError(t, err)
		defer tcp.Close()
		require.NoError(t, tcp.SetDeadline(time.Now().Add(wait)))
		_, err = io.WriteString(tcp, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		require.NoError(t, err)
		line, err := bufio.NewReader(tcp).ReadString('\n')
		require.NoError(t, err)
		assert.Contains(t, line, "HTTP/1.1 ")
	}
}

// serveTLS runs srv behind TLS as a program would, and returns its address and whom to trust.
func serveTLS(t *testing.T, srv *http.Server) (addr string, ca *x509.CertPool) {
	t.Helper()
	lender := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate, of 127.0.0.1
	defer lender.Close()
	ca = x509.NewCertPool()
	ca.AddCert(lender.Certificate())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv.TLSConfig = &tls.Config{Certificates: lender.TLS.Certificates}
	srv.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-ended, http.ErrServerClosed)
	})
	return l.Addr().String(), ca
}

func TestHeadersUpToTheLimit(t *testing.T) {
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for url, limit := range map[string]int{serve(t, NewServer(nothing)): apiHeaderBytes, serve(t, NewProxyServer(nothing)): proxyHeaderBytes} {
		for size, want := range map[int]int{limit - 1024: http.StatusOK, limit + 8192: http.StatusRequestHeaderFieldsTooLarge} {
			tr := NewRPCTransport()
			req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			require.NoError(t, err)
			req.Header.Set("X-Big", strings.Repeat("x", size))
			res, err := tr.RoundTrip(req)
			require.NoError(t, err)
			assert.Equal(t, want, res.StatusCode, "%d of %d", size, limit)
			require.NoError(t, res.Body.Close())
			tr.CloseIdleConnections()
		}
	}
}

func TestDialGuestGivesUpInTime(t *testing.T) {
	_, err := DialGuest(t.Context(), "tcp", "127.0.0.1:1")
	require.Error(t, err)
	conn := listenAndDial(t)
	_, ok := conn.(*net.TCPConn)
	assert.True(t, ok, "%T", conn)
	require.NoError(t, conn.Close())
}

func listenAndDial(t *testing.T) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	conn, err := DialGuest(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	return conn
}

func TestRequireAgentToken(t *testing.T) {
	var reached bytes.Buffer
	next := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(&reached, r.URL.Path) })
	for _, tc := range []struct {
		token, sent string
		want        int
	}{
		{"secret", "secret", 200}, {"secret", "", 401}, {"secret", "secret2", 401}, {"secret", "Secret", 401}, {"", "", 401}, {"", "x", 401},
	} {
		reached.Reset()
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/x", nil)
		if tc.sent != "" {
			r.Header.Set(AgentTokenHeader, tc.sent)
		}
		RequireAgentToken(tc.token, next).ServeHTTP(w, r)
		assert.Equal(t, tc.want, w.Code, "%+v", tc)
		assert.Equal(t, tc.want == 200, reached.Len() > 0, "%+v", tc)
	}
}
