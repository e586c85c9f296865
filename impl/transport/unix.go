package transport

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// NewUnix returns the transport of one VMM's API socket at socketPath (under 104 bytes, the limit of a
// Unix address). Whatever host a URL names, the connection goes to the socket. The owner calls
// CloseIdleConnections when it is done.
//
//   - One connection: Firecracker serves one call at a time, in order, and refuses the eleventh
//     connection, so a second one would gain nothing and could be refused.
//   - Kept alive for 30 s: a start is a burst of six calls; afterwards calls are rare, and an idle
//     connection costs the VMM one of its ten places.
//   - HTTP/1.1 only, no proxy, no compression: Firecracker's server knows none of them, and a proxy from
//     the environment must never see a local socket's traffic.
//   - Dial within 2 s: a Unix connect is immediate unless the listener's backlog is full.
func NewUnix(socketPath string) *http.Transport {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socketPath)
		},
		MaxConnsPerHost:     1,
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
		Protocols:           protocols,
	}
}

// NewUnixServer returns the server of a VMM's API socket, for the stand-in that plays Firecracker.
//
//   - A request's head must arrive within 10 s (SPEC T06); bodies are some hundred bytes.
//   - Idle connections stay: clients of Firecracker keep theirs for the life of the VM, and the number of
//     connections is bounded elsewhere.
//   - Heads over 16 KiB are refused; Firecracker itself refuses a header line over 1 KiB.
func NewUnixServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		Protocols:         protocols,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}
