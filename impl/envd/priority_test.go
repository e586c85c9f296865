package envd

import (
	"errors"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestT07_ProcessesConnectionsGoFirst: a terminal's packets pass others in the guest's card, a file's do not, also
// where one connection carries both.
func TestT07_ProcessesConnectionsGoFirst(t *testing.T) {
	answered := make(chan *tracked, 8)
	d := start(t, func(c *Config) {
		c.tune = func(s *http.Server) {
			daemon := s.Handler
			s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				daemon.ServeHTTP(w, r)
				answered <- r.Context().Value(connKey{}).(*tracked)
			})
		}
	})
	for len(answered) > 0 {
		<-answered // whatever waited for the daemon
	}
	tr := &http.Transport{MaxConnsPerHost: 1}
	defer tr.CloseIdleConnections()
	ask := func(path string) *tracked {
		req, err := http.NewRequestWithContext(within(t), http.MethodPost, d.base+path, http.NoBody)
		require.NoError(t, err)
		res, err := tr.RoundTrip(req)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, res.Body)
		require.NoError(t, errors.Join(err, res.Body.Close()))
		return <-answered
	}
	is := func(c *tracked, level, name int) (v int) {
		raw, err := c.Conn.(*net.TCPConn).SyscallConn()
		require.NoError(t, err)
		var inner error
		require.NoError(t, raw.Control(func(fd uintptr) { v, inner = unix.GetsockoptInt(int(fd), level, name) }))
		require.NoError(t, inner)
		return v
	}
	first := ask("/process.Process/List")
	for _, turn := range []struct {
		path          string
		priority, tos int
	}{{"/process.Process/List", interactive, lowDelay}, {"/files", 0, 0}, {"/process.Process/List", interactive, lowDelay}} {
		c := ask(turn.path)
		assert.Same(t, first, c, "all go over one connection")
		assert.Equal(t, turn.priority, is(c, unix.SOL_SOCKET, unix.SO_PRIORITY), turn.path)
		assert.Equal(t, turn.tos, is(c, unix.IPPROTO_IP, unix.IP_TOS), turn.path)
	}
}
