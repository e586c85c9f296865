package streams_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
)

// TestP10_LoopbackPortsThroughTheProxy has Python's server on each kind of address, closed and opened again,
// and a program that moves from loopback to the wildcard.
func TestP10_LoopbackPortsThroughTheProxy(t *testing.T) {
	c := start(t)
	box := c.Create()
	tr := browser(t, c)
	ask := func(port int) (int, string) {
		res, err := get(t, c, tr, box, port, "/name")
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(body)
	}
	serve := func(bind string, port int, name string) *viewer {
		return view(t, c, box, "exec", fmt.Sprintf(
			`{"type":"start","cmd":"sh","args":["-c","d=$(mktemp -d); echo %s > $d/name; exec python3 -u -m http.server --bind %s --directory $d %d"],"kill":true}`, name, bind, port))
	}
	comes := func(port int, name string) time.Duration {
		begun := time.Now()
		require.Eventually(t, func() bool {
			code, body := ask(port)
			return code == http.StatusOK && body == name+"\n"
		}, harness.Patience, 20*time.Millisecond, "port %d does not answer as %s", port, name)
		return time.Since(begun)
	}
	goes := func(port int) {
		require.Eventually(t, func() bool { code, _ := ask(port); return code == http.StatusBadGateway }, harness.Patience, 20*time.Millisecond)
	}
	four := serve("127.0.0.1", 8001, "four")
	four.until("Serving HTTP")
	t.Logf("a port on 127.0.0.1 answered %v after its program said so", comes(8001, "four"))
	six := serve("::1", 8002, "six")
	six.until("Serving HTTP")
	comes(8002, "six")
	serve("0.0.0.0", 8003, "any")
	comes(8003, "any")

	four.say(`{"type":"signal","signal":"SIGKILL"}`)
	four.exits(-1)
	goes(8001)
	four = serve("127.0.0.1", 8001, "again")
	comes(8001, "again")
	four.say(`{"type":"signal","signal":"SIGKILL"}`)
	four.exits(-1)
	goes(8001)
	serve("0.0.0.0", 8001, "wide")
	comes(8001, "wide")

	// The daemon's own port is what it was, and asks for its token.
	code, _ := ask(49983)
	assert.Equal(t, http.StatusUnauthorized, code)
	assert.Equal(t, "ok\n", c.Exec(box, "echo", "ok"))
}
