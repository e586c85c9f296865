package filesystem

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"

	"wrenn/impl/envd/stream"
	pb "wrenn/proto/gen/envd/filesystem"
)

const (
	// maxWatchers bounds the polled watchers of a guest; the kernel allows a user 128 in all.
	maxWatchers = 64
	// maxPending bounds the changes that a polled watcher keeps for its client.
	maxPending = 1 << 16
)

// watchRequest is what WatchDir and CreateWatcher have in common.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

func (h *Handler) watch(header http.Header, m watchRequest) (*watch, error) {
	_, path, err := h.resolve(header, "path", m.GetPath())
	if err != nil {
		return nil, err
	}
	if err := isDir(path); err != nil {
		return nil, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, wireError(err)
	}
	if !m.GetAllowNetworkMounts() {
		remote, err := onNetwork(path)
		if err != nil {
			return nil, wireError(err)
		}
		if remote {
			return nil, invalid("path: %q is on a network mount, whose changes made elsewhere are not seen (allow_network_mounts)", path)
		}
	}
	w, err := newWatch(path, m.GetRecursive())
	return w, wireError(err)
}

// event converts a change; an entry goes with what can have one.
func (w *watch) event(c Change, withEntry bool) *pb.FilesystemEvent {
	ev := &pb.FilesystemEvent{Name: c.Name, Type: opOf(c.Op)}
	if withEntry && (c.Op == Create || c.Op == Write || c.Op == Chmod) {
		if e, err := newNames().entry(filepath.Join(w.root, c.Name)); err == nil {
			ev.Entry = infoOf(e)
		}
	}
	return ev
}

// WatchDir streams the changes of a directory until the client leaves.
func (h *Handler) WatchDir(ctx context.Context, req *connect.Request[pb.WatchDirRequest], out *connect.ServerStream[pb.WatchDirResponse]) error {
	w, err := h.watch(req.Header(), req.Msg)
	if err != nil {
		return err
	}
	defer w.close()
	defer stream.CutOffWhen(ctx, w.lost)()
	if err := out.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}
	interval := stream.Keepalive(req.Header())
	quiet := time.NewTicker(interval)
	defer quiet.Stop()
	for {
		m := &pb.WatchDirResponse{}
		select {
		case <-ctx.Done():
			return wireError(ctx.Err())
		case <-quiet.C:
			m.Event = &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}
		case c, ok := <-w.changes:
			if !ok {
				return wireError(fmt.Errorf("watch %q: %w", w.root, w.err))
			}
			m.Event = &pb.WatchDirResponse_Filesystem{Filesystem: w.event(c, req.Msg.GetIncludeEntry())}
			quiet.Reset(interval)
		}
		if err := out.Send(m); err != nil {
			return err
		}
	}
}

// polled is the watchers that clients ask instead of holding a stream open.
type polled struct {
	mu       sync.Mutex
	watchers map[string]*pollWatcher
}

type pollWatcher struct {
	w    *watch
	over chan struct{}

	mu     sync.Mutex
	events []*pb.FilesystemEvent
	err    error
}

// collect keeps changes until they are fetched or too many.
func (p *pollWatcher) collect(withEntry bool) {
	defer close(p.over)
	for c := range p.w.changes {
		ev := p.w.event(c, withEntry)
		p.mu.Lock()
		if len(p.events) < maxPending {
			p.events = append(p.events, ev)
		} else {
			p.err = ErrLost
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && !errors.Is(p.w.err, os.ErrDeadlineExceeded) {
		p.err = p.w.err
	}
}

// take returns the changes since the last call; an error once they are at an end.
func (p *pollWatcher) take() ([]*pb.FilesystemEvent, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	events := p.events
	p.events = nil
	if len(events) == 0 && p.err != nil {
		return nil, p.err
	}
	return events, nil
}

func (p *pollWatcher) close() {
	p.w.close()
	<-p.over
}

func (p *polled) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, w := range p.watchers {
		w.close()
		delete(p.watchers, id)
	}
}

func (p *polled) get(id string) (*pollWatcher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, ok := p.watchers[id]; ok {
		return w, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("watcher %q not found", id))
}

// CreateWatcher starts a watch whose changes the client fetches. It lives until RemoveWatcher.
func (h *Handler) CreateWatcher(_ context.Context, req *connect.Request[pb.CreateWatcherRequest]) (*connect.Response[pb.CreateWatcherResponse], error) {
	h.polled.mu.Lock()
	defer h.polled.mu.Unlock()
	if len(h.polled.watchers) >= maxWatchers {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d watchers exist, remove one first", maxWatchers))
	}
	w, err := h.watch(req.Header(), req.Msg)
	if err != nil {
		return nil, err
	}
	p := &pollWatcher{w: w, over: make(chan struct{})}
	go p.collect(req.Msg.GetIncludeEntry())
	id := "w" + rand.Text()
	h.polled.watchers[id] = p
	return connect.NewResponse(&pb.CreateWatcherResponse{WatcherId: id}), nil
}

// GetWatcherEvents returns the changes since the last call.
func (h *Handler) GetWatcherEvents(_ context.Context, req *connect.Request[pb.GetWatcherEventsRequest]) (*connect.Response[pb.GetWatcherEventsResponse], error) {
	p, err := h.polled.get(req.Msg.GetWatcherId())
	if err != nil {
		return nil, err
	}
	events, err := p.take()
	if err != nil {
		return nil, wireError(fmt.Errorf("watch %q: %w", p.w.root, err))
	}
	return connect.NewResponse(&pb.GetWatcherEventsResponse{Events: events}), nil
}

// RemoveWatcher ends a watch.
func (h *Handler) RemoveWatcher(_ context.Context, req *connect.Request[pb.RemoveWatcherRequest]) (*connect.Response[pb.RemoveWatcherResponse], error) {
	p, err := h.polled.get(req.Msg.GetWatcherId())
	if err != nil {
		return nil, err
	}
	h.polled.mu.Lock()
	delete(h.polled.watchers, req.Msg.GetWatcherId())
	h.polled.mu.Unlock()
	p.close()
	return connect.NewResponse(&pb.RemoveWatcherResponse{}), nil
}
