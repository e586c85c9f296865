package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"wrenn/impl/transport"
)

// Ports of the guest's servers; bench/ground knows them too.
const (
	httpPort    = "8888"
	echoPort    = "7007"
	echoPTYPort = "7008"
)

// The Jupyter-like WebSocket: 20 messages of 50 kB a second are 1 MB/s. Of 32 sockets that each send a large
// frame every 32 s, some socket sends one each second.
const (
	messageSize  = 50_000
	messagePause = 50 * time.Millisecond
	largeFrame   = 8 << 20
	largeEvery   = 32 * time.Second
	largeSpread  = time.Second
)

// pollReply is about what a REST API answers to a poll.
const pollReply = 2048

// piece is what a download is written in.
const piece = 64 << 10

// maxBytes bounds a download of a known size.
const maxBytes = 1 << 30

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func serveGuest(ctx context.Context, ip string) error {
	var g errgroup.Group
	g.Go(func() error { return serve(ctx, net.JoinHostPort(ip, echoPort), echoTCP) })
	g.Go(func() error { return serve(ctx, net.JoinHostPort(ip, echoPTYPort), echoTerminal) })
	g.Go(func() error { return serveHTTP(ctx, net.JoinHostPort(ip, httpPort)) })
	return g.Wait()
}

func serveHTTP(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: routes(ctx), ReadHeaderTimeout: transport.ReadHeaderTimeout}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

func routes(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /poll", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, pollReply)) })
	mux.HandleFunc("GET /download", download)
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 || n > maxBytes {
			http.Error(w, "a number of bytes up to 1 GiB", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.Copy(w, io.LimitReader(zeros{}, n))
	})
	// A program that takes a request and never reads its body: it is blocked, stopped in a debugger, or slow.
	mux.HandleFunc("POST /unread", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-ctx.Done():
		}
	})
	mux.HandleFunc("POST /upload", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	mux.HandleFunc("GET /ws", jupyter)
	mux.HandleFunc("GET /idle", func(w http.ResponseWriter, r *http.Request) {
		if c, err := websocket.Accept(w, r, nil); err == nil {
			_, _, _ = c.Read(r.Context())
			_ = c.CloseNow()
		}
	})
	return mux
}

// download sends bytes until the reader goes away.
func download(w http.ResponseWriter, r *http.Request) {
	buf := make([]byte, piece)
	for r.Context().Err() == nil {
		if _, err := w.Write(buf); err != nil {
			return
		}
	}
}

// opened counts the Jupyter-like WebSockets of this process.
var opened atomic.Int64

// firstLarge is when the nth WebSocket sends its first large frame: those that open together, and have the same
// clock, take turns.
func firstLarge(n int64) time.Duration { return time.Duration(n) * largeSpread % largeEvery }

// jupyter sends what a notebook's kernel does that prints steadily and now and then draws a large picture.
func jupyter(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow() //nolint:errcheck // it is over whatever this says
	ctx := c.CloseRead(r.Context())
	large := time.NewTicker(largeEvery)
	defer large.Stop()
	first := time.NewTimer(firstLarge(opened.Add(1)))
	defer first.Stop()
	steady := time.NewTicker(messagePause)
	defer steady.Stop()
	message, picture := make([]byte, messageSize), make([]byte, largeFrame)
	for err == nil {
		select {
		case <-ctx.Done():
			return
		case <-steady.C:
			err = c.Write(ctx, websocket.MessageBinary, message)
		case <-first.C:
			large.Reset(largeEvery)
			err = c.Write(ctx, websocket.MessageBinary, picture)
		case <-large.C:
			err = c.Write(ctx, websocket.MessageBinary, picture)
		}
	}
}
