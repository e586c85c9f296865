package portproxy

import (
	"io"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Each key that is typed is a call to the daemon. Its connections are used again, for nothing else, and none
// outlives its sandbox.
func TestT03_ConnectionsToTheDaemonAreKeptAndEndWithTheSandbox(t *testing.T) {
	c := newHTTPChain(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) }))
	call := func(host string) string {
		res, from := c.get("/", host)
		require.Equal(t, http.StatusOK, res.StatusCode)
		return from
	}
	first := call("Host: 49983-abc.x")
	for range 3 {
		require.Eventually(t, func() bool { return c.connections("abc") == 1 }, wait, time.Millisecond)
		assert.Equal(t, first, call("Host: 49983-abc.x"), "a connection to the daemon is used again")
	}
	assert.NotEqual(t, first, call("Host: 8080-abc.x"), "one to the daemon leads to a user's server")
	g, _ := c.host.guests.Load("abc")
	c.kill("abc")
	assert.Empty(t, g.(*guest).conns)
	c.with(func() { c.addrs["abc"] = netip.MustParseAddr("127.0.0.1") })
	assert.NotEqual(t, first, call("Host: 49983-abc.x"), "the next life has connections of its own")
	c.kill("abc")
}
