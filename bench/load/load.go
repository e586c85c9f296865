// Package load is what a sandbox's user does beside typing: notebooks, polling, downloads and uploads.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Door leads to the servers of a guest (bench/actor) by one of the designs that are compared.
type Door interface {
	// RoundTrip sends a request, whose URL has a path alone, to the guest's HTTP server.
	http.RoundTripper
	// WebSocket opens a WebSocket there; what is read are its bytes on the wire.
	WebSocket(ctx context.Context, path string) (io.ReadCloser, error)
}

// Kind is what a user does.
type Kind string

// The kinds of load.
const (
	None      Kind = "none"
	Jupyter   Kind = "websockets" // 32 WebSockets at 1 MB/s each, with a frame of 8 MB now and then
	Poll      Kind = "poll"       // 200 requests of a REST API per second
	Download  Kind = "download"   // one download as fast as it comes
	Downloads Kind = "downloads"  // 4 downloads
	Flood     Kind = "downloads16"
	Unread    Kind = "unread-upload"  // one upload whose receiver does not read
	Stalled   Kind = "stalled-viewer" // one download that its receiver does not go on reading
	All       Kind = "all"            // all of the above but Download and Flood
)

// Kinds are those that BenchmarkPTY goes through.
var Kinds = []Kind{None, Jupyter, Poll, Downloads, Unread, Stalled, All}

// Sizes of the loads.
const (
	sockets    = 32
	pollers    = 8
	pollPause  = pollers * time.Second / 200
	downloads  = 4
	flood      = 16
	readBuffer = 64 << 10
	// uploadPiece is what an unread upload is written in.
	uploadPiece = 16 << 10
)

// Load is traffic under way.
type Load struct {
	door   Door
	cancel context.CancelFunc
	wg     sync.WaitGroup
	bytes  atomic.Int64
	calls  atomic.Int64

	mu  sync.Mutex
	err error
}

// Start starts a kind of load through a door and returns once all its parts have begun or ten seconds have
// passed, in which a part may be starved by the others. The caller ends it by Stop.
func Start(ctx context.Context, door Door, kind Kind) (*Load, error) {
	ctx, cancel := context.WithCancel(ctx)
	l := &Load{door: door, cancel: cancel}
	var begun []chan struct{}
	run := func(n int, part func(ctx context.Context, began func()) error) {
		for range n {
			c := make(chan struct{})
			begun = append(begun, c)
			began := sync.OnceFunc(func() { close(c) })
			l.wg.Go(func() {
				if err := part(ctx, began); err != nil && ctx.Err() == nil {
					l.fail(err)
				}
				began() // or is over
			})
		}
	}
	every := kind == All
	if every || kind == Jupyter {
		run(sockets, l.socket)
	}
	if every || kind == Poll {
		run(pollers, l.poll)
	}
	if every || kind == Downloads {
		run(downloads, l.download)
	}
	if kind == Download {
		run(1, l.download)
	}
	if kind == Flood {
		run(flood, l.download)
	}
	if every || kind == Stalled {
		run(1, l.stall)
	}
	if every || kind == Unread {
		run(1, l.unread)
	}
	limit := time.After(10 * time.Second)
	for _, c := range begun {
		select {
		case <-c:
		case <-limit:
			return l, l.Err()
		}
		if err := l.Err(); err != nil {
			l.Stop()
			return nil, err
		}
	}
	return l, nil
}

// Stop ends the load and waits until it has ended.
func (l *Load) Stop() {
	l.cancel()
	l.wg.Wait()
}

// Bytes is how many have come or been taken so far, Calls how many polls were answered.
func (l *Load) Bytes() int64 { return l.bytes.Load() }

// Calls is how many polls were answered so far.
func (l *Load) Calls() int64 { return l.calls.Load() }

// Err is the first failure of a part, which ended that part.
func (l *Load) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *Load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(l.err, err)
}

func (l *Load) request(ctx context.Context, method, path string, body io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := l.door.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, path, res.Status)
	}
	return res.Body, nil
}

// drain reads to the end and counts.
func (l *Load) drain(r io.Reader, began func()) error {
	buf := make([]byte, readBuffer)
	for {
		n, err := r.Read(buf)
		l.bytes.Add(int64(n))
		if n > 0 {
			began()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (l *Load) socket(ctx context.Context, began func()) error {
	conn, err := l.door.WebSocket(ctx, "/ws")
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it is over whatever this says
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	return l.drain(conn, began)
}

func (l *Load) poll(ctx context.Context, began func()) error {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		body, err := l.request(ctx, http.MethodGet, "/poll", nil)
		if err != nil {
			return err
		}
		err = l.drain(body, began)
		_ = body.Close()
		if err != nil {
			return err
		}
		l.calls.Add(1)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (l *Load) download(ctx context.Context, began func()) error {
	body, err := l.request(ctx, http.MethodGet, "/download", nil)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // it is over whatever this says
	return l.drain(body, began)
}

// stall reads a little of a download and then nothing.
func (l *Load) stall(ctx context.Context, began func()) error {
	body, err := l.request(ctx, http.MethodGet, "/download", nil)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // it is over whatever this says
	if _, err := io.CopyN(io.Discard, body, readBuffer); err != nil {
		return err
	}
	l.bytes.Add(readBuffer)
	began()
	<-ctx.Done()
	return nil
}

// unread uploads until nothing is taken any more, and then waits.
func (l *Load) unread(ctx context.Context, began func()) error {
	body, err := l.request(ctx, http.MethodPost, "/unread", &endless{l: l, ctx: ctx, began: began})
	if err != nil {
		return err
	}
	return body.Close()
}

// endless is a body of zeros.
type endless struct {
	l     *Load
	ctx   context.Context //nolint:containedctx // io.Reader cannot carry it
	began func()
}

func (e *endless) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	n := min(len(p), uploadPiece)
	clear(p[:n])
	e.l.bytes.Add(int64(n))
	e.began()
	return n, nil
}
