package envd

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"wrenn/proto/gen/envd/process/processconnect"
)

// The marks of what cannot wait, as impl/transport has them on the host's side with their reasons: the priority
// lets packets pass others in the queue of the guest's network card, which fills when its traffic is limited.
const (
	interactive = 6    // TC_PRIO_INTERACTIVE
	lowDelay    = 0x10 // RFC 1349's "minimize delay"
)

// tracked is a connection of the daemon's server.
type tracked struct {
	net.Conn
	marked atomic.Bool
}

// mark sets or takes the marks where they are not so. IP_TOS changes the priority too, so that comes after it.
// A connection that cannot be marked is only no sooner than others.
func (c *tracked) mark(on bool) {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok || c.marked.Swap(on) == on {
		return
	}
	tos, priority := 0, 0
	if on {
		tos, priority = lowDelay, interactive
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, priority)
		})
	}
}

// markStreams marks the connections by which processes are talked to, and takes the marks off one that carries
// something else later. By HTTP/2 one carries everything, and stays as it is.
func markStreams(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*tracked); ok && r.ProtoMajor == 1 {
			c.mark(strings.HasPrefix(r.URL.Path, "/"+processconnect.ProcessName+"/"))
		}
		next.ServeHTTP(w, r)
	})
}
