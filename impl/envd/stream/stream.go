// Package stream holds what the daemon's long replies share: the keepalive interval that a client asks
// for, and the way to be rid of a client that has stopped reading.
package stream

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"time"

	"wrenn/impl/internal/shortcut"
)

// DefaultKeepalive is the pause after which a quiet stream sends a keepalive, where the client does not
// ask for another: the value of E2B's daemon.
const DefaultKeepalive = 90 * time.Second

// maxKeepalive bounds what a client may ask for.
const maxKeepalive = time.Hour

// Farewell is how long a client that was cut off has left to read what is queued and the reason.
const Farewell = 5 * time.Second

type (
	controllerKey struct{}
	connKey       struct{}
	roomKey       struct{}
)

// WithConn lets RoomOf know the connection of the requests whose contexts come of ctx.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// RoomOf returns a function that says whether something short may be sent as part of ctx's reply without waiting. It is nil where
// that cannot be known, as by HTTP/2, whose windows are not the socket's.
func RoomOf(ctx context.Context) func() bool {
	c, ok := ctx.Value(roomKey{}).(net.Conn)
	if !ok {
		return nil
	}
	return shortcut.RoomOf(c)
}

// timeoutHeader is how long a request of the Connect protocol may take, in milliseconds.
const timeoutHeader = "Connect-Timeout-Ms"

// Middleware lets CutOffWhen and RoomOf reach the connection of a request's reply, and takes a timeout of zero, by
// which E2B's clients mean none, out of its way.
func Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		// A deadline set by CutOffWhen outlives its request on a kept-alive connection.
		_ = rc.SetWriteDeadline(time.Time{})
		if r.Header.Get(timeoutHeader) == "0" {
			r.Header.Del(timeoutHeader)
		}
		ctx := context.WithValue(r.Context(), controllerKey{}, rc)
		if r.ProtoMajor == 1 {
			ctx = context.WithValue(ctx, roomKey{}, ctx.Value(connKey{}))
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// CutOffWhen bounds the rest of ctx's reply to Farewell from the moment that cut is closed: a write that
// takes longer fails, even one that is blocked then, so that no goroutine waits for a client that has
// stalled. The returned function ends the watch and must be called before the handler returns.
func CutOffWhen(ctx context.Context, cut <-chan struct{}) (stop func()) {
	rc, ok := ctx.Value(controllerKey{}).(*http.ResponseController)
	if !ok {
		return func() {}
	}
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-cut:
			_ = rc.SetWriteDeadline(time.Now().Add(Farewell))
		case <-done:
		}
	}()
	return func() { close(done); <-over }
}

// Keepalive is the interval in a request's Keepalive-Ping-Interval header (whole seconds, 1 to 3600),
// DefaultKeepalive where it is missing or out of range.
func Keepalive(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if d := time.Duration(n) * time.Second; err == nil && d > 0 && d <= maxKeepalive {
		return d
	}
	return DefaultKeepalive
}
