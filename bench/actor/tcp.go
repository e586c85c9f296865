package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"

	"github.com/creack/pty"
)

// serve accepts connections until ctx ends and gives each to handle, which closes it; the end of ctx closes it
// too, and is waited for.
func serve(ctx context.Context, addr string, handle func(context.Context, net.Conn)) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", addr, err)
		}
		handlers.Go(func() {
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			handle(ctx, conn)
		})
	}
}

// serveRelay joins connections in both directions. Go hands the copying to splice(2), so this is the least
// that a hop in user space can cost.
func serveRelay(ctx context.Context, listen, to string) error {
	return serve(ctx, listen, func(ctx context.Context, in net.Conn) {
		out, err := new(net.Dialer).DialContext(ctx, "tcp", to)
		if err != nil {
			_ = in.Close()
			return
		}
		join(in, out)
	})
}

// join copies both ways and closes both when either is over.
func join(a, b io.ReadWriteCloser) {
	var both sync.WaitGroup
	for _, way := range [][2]io.ReadWriteCloser{{a, b}, {b, a}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // the end of either is the end of both, whatever it is
			_, _ = a.Close(), b.Close()
		})
	}
	both.Wait()
}

func echoTCP(_ context.Context, conn net.Conn) {
	_, _ = io.Copy(conn, conn)
	_ = conn.Close()
}

// echoTerminal joins a connection to a terminal that echoes.
func echoTerminal(ctx context.Context, conn net.Conn) {
	defer conn.Close() //nolint:errcheck // it is over whatever this says
	cmd := exec.CommandContext(ctx, "sh", "-c", EchoScript)
	terminal, err := pty.Start(cmd)
	if err != nil {
		return
	}
	join(conn, terminal)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
}

// EchoScript makes a terminal echo each byte at once, by the kernel's line discipline, and nothing else read
// it. bench/ground runs the same one through envd.
const EchoScript = `stty raw echo; echo ready; exec cat >/dev/null`
