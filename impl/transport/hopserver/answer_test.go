package hopserver

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestABodyThatNobodyReads(t *testing.T) {
	_, addr := start(t, func(http.ResponseWriter, *http.Request) {})
	c := connect(t, addr)
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("(", 1000) + "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	for range 2 {
		res, _ := c.answer("GET")
		assert.Equal(t, http.StatusOK, res.StatusCode)
		assert.False(t, res.Close, "a short one is skipped")
	}
	// Of a long one the client gets its answer, though it still sends: to close at once would reset it.
	const long = 8 << 20
	go func() {
		_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", long)
		_, _ = c.Write(make([]byte, long))
	}()
	res, _ := c.answer("GET")
	assert.Equal(t, http.StatusOK, res.StatusCode)
}

// TestAClientThatStillSendsKeepsItsAnswer: a connection that is closed with bytes unread is reset.
func TestAClientThatStillSendsKeepsItsAnswer(t *testing.T) {
	_, addr := start(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") })
	for _, request := range []string{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"} {
		c := connect(t, addr)
		c.send(request + strings.Repeat("x", 100))
		line, err := c.r.ReadString('\n')
		require.NoError(t, err)
		assert.Contains(t, line, "HTTP/1.1 ")
		for began := time.Now(); time.Since(began) < lingerTime/2; time.Sleep(lingerTime / 20) { // for a reset to come back
			_, err := io.WriteString(c, "more")
			if time.Since(began) < lingerTime/2 {
				require.NoError(t, err)
			}
		}
	}
}

func TestWhatHTTPForbids(t *testing.T) {
	served := 0
	_, addr := start(t, func(w http.ResponseWriter, _ *http.Request) {
		served++
		w.WriteHeader(http.StatusEarlyHints)
	})
	c := connect(t, addr)
	c.send("GET / HTTP/1.1\r\nAccept: */*\r\n\r\n")
	res, _ := c.answer("GET")
	assert.Equal(t, http.StatusBadRequest, res.StatusCode, "a request without a host")
	assert.Zero(t, served)
	c.closed()
	c = connect(t, addr)
	c.send("GET / HTTP/1.0\r\n\r\n")
	res, _ = c.answer("GET")
	assert.Equal(t, http.StatusOK, res.StatusCode, "an interim answer to a client that knows of none")
	assert.Equal(t, 1, served)
}

func TestExpectContinue(t *testing.T) {
	_, addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/refuse":
			w.WriteHeader(http.StatusForbidden)
		case "/ask":
			w.WriteHeader(http.StatusContinue)
			fallthrough
		default:
			_, _ = io.Copy(w, r.Body)
		}
	})
	for _, path := range []string{"/read", "/ask"} {
		c := connect(t, addr)
		c.send("POST " + path + " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		line, err := c.r.ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, "HTTP/1.1 100 Continue\r\n", line)
		_, err = c.r.ReadString('\n')
		require.NoError(t, err)
		c.send("body")
		res, body := c.answer("POST")
		assert.Equal(t, "body", body, "and it is told once")
		assert.False(t, res.Close)
	}
	c := connect(t, addr)
	c.send("POST /refuse HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	res, _ := c.answer("POST")
	assert.Equal(t, http.StatusForbidden, res.StatusCode)
	assert.True(t, res.Close, "whether the body comes is not known")
	c.closed()
}

func TestWhatTheHandlerMayNotDo(t *testing.T) {
	_, addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/long":
			w.Header().Set("Content-Length", "2")
			_, err := io.WriteString(w, "abc")
			assert.ErrorIs(t, err, http.ErrContentLength)
			_, err = io.WriteString(w, "ab")
			assert.NoError(t, err)
		case "/short":
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "abc")
		case "/none":
			w.WriteHeader(http.StatusNoContent)
			_, err := io.WriteString(w, "abc")
			assert.ErrorIs(t, err, http.ErrBodyNotAllowed)
		case "/twice":
			w.WriteHeader(http.StatusAccepted)
			w.Header().Set("X-Late", "1")
			w.WriteHeader(http.StatusTeapot)
			_, _, err := http.NewResponseController(w).Hijack()
			assert.Error(t, err)
		}
	})
	get := func(path string) (*http.Response, string, error) {
		res, err := (&http.Client{Timeout: wait}).Get("http://" + addr + path)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return res, string(body), err
	}
	defer http.DefaultClient.CloseIdleConnections()
	_, body, err := get("/long")
	assert.NoError(t, err)
	assert.Equal(t, "ab", body)
	_, body, err = get("/short")
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, "abc", body)
	res, _, err := get("/none")
	assert.NoError(t, err)
	assert.Equal(t, http.StatusNoContent, res.StatusCode)
	res, _, err = get("/twice")
	assert.NoError(t, err)
	assert.Equal(t, http.StatusAccepted, res.StatusCode)
	assert.Empty(t, res.Header.Get("X-Late"))
}

// BenchmarkRequest is one small request on a connection that is kept, here and with net/http's server.
func BenchmarkRequest(b *testing.B) {
	handler := func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Length"] = []string{"5"}
		_, _ = io.WriteString(w, "hello")
	}
	bench := func(addr string) func(b *testing.B) {
		return func(b *testing.B) {
			c := connect(b, addr)
			b.ReportAllocs()
			for b.Loop() {
				c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				c.answer("GET")
			}
		}
	}
	_, addr := start(b, handler)
	b.Run("server=ours", bench(addr))
	theirs := httptest.NewServer(http.HandlerFunc(handler))
	defer theirs.Close()
	b.Run("server=net-http", bench(theirs.Listener.Addr().String()))
}
