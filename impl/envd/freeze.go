package envd

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/envd/answer"
	"wrenn/impl/envd/stream"
)

// CgroupsOf is where wrenn-init mounts the control groups of a guest; elsewhere they are not the daemon's.
func CgroupsOf(guest bool) string {
	if guest {
		return "/sys/fs/cgroup"
	}
	return ""
}

// postFreeze makes the guest ready to be stopped: connections are cut, since none outlives a pause, the users'
// processes stand still, and what they wrote is on the disk. When it fails they go on.
func (d *daemon) postFreeze(w http.ResponseWriter, r *http.Request) {
	d.conns.cutOthers(r)
	if err := d.freezer.Freeze(r.Context()); err != nil {
		answer.Error(w, http.StatusInternalServerError, err.Error())
		return
	}
	if err := syncDisks(r.Context()); err != nil {
		_ = d.freezer.Thaw() // the error below is the one to tell
		answer.Error(w, http.StatusInternalServerError, "write back the file systems: "+err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// syncDisks writes all file systems back. A disk that does not answer is not waited for beyond ctx.
func syncDisks(ctx context.Context) error {
	synced := make(chan struct{})
	go func() {
		unix.Sync()
		close(synced)
	}()
	select {
	case <-synced:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const (
	// rehearseAfter is how long after a thaw a freeze is rehearsed: by then what waited for the resume has had its turn.
	rehearseAfter = time.Second
	// rehearsalTimeout bounds it by what a host grants a freeze; a disk that is busy for so long is no place for one.
	rehearsalTimeout = 30 * time.Second
)

// rehearse does what a freeze does, to nobody. A guest that was restored has lost what its emulator had made of the
// code, or has left it where memory is brought as it is needed; a pause would wait for that.
func (d *daemon) rehearse() {
	ctx, cancel := context.WithTimeout(context.Background(), rehearsalTimeout)
	defer cancel()
	if err := errors.Join(d.freezer.Rehearse(ctx), syncDisks(ctx)); err != nil {
		d.log.Warn("a freeze could not be rehearsed", "error", err)
	}
}

// postUnfreeze lets the users' processes go on.
func (d *daemon) postUnfreeze(w http.ResponseWriter, _ *http.Request) {
	if err := d.freezer.Thaw(); err != nil {
		answer.Error(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// connections are those of the daemon's server.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

type connKey struct{}

// watch lets c know the server's connections.
func (c *connections) watch(srv *http.Server) {
	c.open = map[net.Conn]struct{}{}
	srv.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(stream.WithConn(ctx, conn), connKey{}, &tracked{Conn: conn})
	}
	srv.ConnState = func(conn net.Conn, state http.ConnState) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch state {
		case http.StateNew:
			c.open[conn] = struct{}{}
		case http.StateClosed, http.StateHijacked:
			delete(c.open, conn)
		default:
		}
	}
}

// cutOthers resets every connection but that of r. Who reads a process's output over one is gone then; the
// process and what its terminal showed are not.
func (c *connections) cutOthers(r *http.Request) {
	own, _ := r.Context().Value(connKey{}).(*tracked)
	c.mu.Lock()
	var others []net.Conn
	for conn := range c.open {
		if own == nil || conn != own.Conn {
			others = append(others, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range others {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // no last words to a peer that is another machine's by now
		}
		_ = conn.Close()
	}
}
