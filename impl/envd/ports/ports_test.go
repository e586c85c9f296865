package ports

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

func TestP10_LoopbackPortsAreReachable(t *testing.T) {
	watch(t, nil)
	for name, at := range map[string]string{"v4": "127.0.0.1:0", "v6": "[::1]:0"} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			_, port := echo(t, name, at)
			answers(t, name+":hello", outside, port)
			t.Logf("reachable after %v", time.Since(begun))
			answers(t, name+":hello", outside6, port)
		})
	}
	// A program on both has one forward, which prefers IPv4 and changes over where that ends.
	first, port := echo(t, "four", "127.0.0.1:0")
	echo(t, "six", fmt.Sprintf("[::1]:%d", port))
	answers(t, "four:hello", outside, port)
	require.NoError(t, first.Close())
	answers(t, "six:hello", outside, port)
}

func TestP10_PythonsServerOnLoopback(t *testing.T) {
	need.Program(t, "python3")
	watch(t, nil)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/hello.txt", []byte("from python"), 0o644))
	const port = 18080
	serve := func() *exec.Cmd {
		cmd := exec.Command("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", dir, strconv.Itoa(port))
		require.NoError(t, cmd.Start())
		return cmd
	}
	for range 2 { // closed and opened again
		cmd := serve()
		require.Eventually(t, func() bool {
			out, err := exec.Command("python3", "-c", fmt.Sprintf(
				"import urllib.request as u; print(u.urlopen('http://%s:%d/hello.txt').read().decode(), end='')", outside, port)).Output()
			return err == nil && string(out) == "from python"
		}, deadline, 50*time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		refuses(t, outside, port)
	}
}

func TestP10_WildcardsAndOthersAreLeftAlone(t *testing.T) {
	s := newScans(t)
	watch(t, counted(s))
	for name, at := range map[string]string{
		"v4 wildcard": "0.0.0.0:0", "both wildcards": ":0", "v6 wildcard": "[::]:0", "the address itself": outside + ":0", "another loopback address": "127.0.0.53:0",
	} {
		l, err := net.Listen("tcp", at)
		require.NoError(t, err, name)
		defer l.Close()
	}
	// The daemon's own port on loopback, in a guest that has another daemon.
	l, err := net.Listen("tcp", "127.0.0.1:49983")
	require.NoError(t, err)
	defer l.Close()
	// Loopback beside a listener of the address itself.
	_, port := echo(t, "inner", "127.0.0.1:0")
	echo(t, "outer", fmt.Sprintf("%s:%d", outside, port))
	s.pass(t, 3)
	_, err = ask(outside, 49983)
	require.ErrorContains(t, err, "refused")
	answer, err := ask(outside, port)
	require.NoError(t, err)
	assert.Equal(t, "outer:hello", answer)
}

func TestP10_AProgramMovesFromLoopbackToTheWildcard(t *testing.T) {
	watch(t, nil)
	inner, port := echo(t, "inner", "127.0.0.1:0")
	answers(t, "inner:hello", outside, port)
	require.NoError(t, inner.Close())
	var outer net.Listener
	begun := time.Now()
	require.Eventually(t, func() bool {
		l, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port)) // of both families, as Go understands it
		outer = l
		return err == nil
	}, deadline, 5*time.Millisecond, "the forwards do not give way")
	t.Logf("gave way after %v", time.Since(begun))
	require.NoError(t, outer.Close())
	echo(t, "outer", fmt.Sprintf("0.0.0.0:%d", port))
	answers(t, "outer:hello", outside, port)
}

// TestP10_WhoIsRefusedFindsThePortFree: between two scans, once somebody has been told that nothing answers, another
// program can have the port on any address; and a program that is back on loopback is forwarded again.
func TestP10_WhoIsRefusedFindsThePortFree(t *testing.T) {
	need.Root(t)
	inner, port := echo(t, "inner", "127.0.0.1:0")
	w := New(Config{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	defer w.group.Wait()
	defer cancel()
	seen := []listener{{at: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), inode: 1}}
	scan := func() ([]listener, error) { return seen, nil }
	w.step(ctx, scan)
	answers(t, "inner:hello", outside, port)
	require.NoError(t, inner.Close())
	_, err := ask(outside, port)
	require.Error(t, err)
	outer, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	require.NoError(t, err, "the forward still has the port")
	require.NoError(t, outer.Close())

	_, _ = echo(t, "again", fmt.Sprintf("127.0.0.1:%d", port))
	w.step(ctx, scan) // ends what is over
	w.step(ctx, scan)
	answers(t, "again:hello", outside, port)
	seen = nil
	for range maxMissed {
		w.step(ctx, scan)
	}
	assert.Empty(t, w.forwards)
}

func TestP10_AWildcardBesideAForwardWins(t *testing.T) {
	// Two scans of a fake kernel: in the second, somebody listens on the wildcard, too.
	_, port := echo(t, "inner", "127.0.0.1:0")
	at := func(addr string) listener {
		return listener{at: netip.AddrPortFrom(netip.MustParseAddr(addr), port), inode: 1}
	}
	need.Root(t)
	w := New(Config{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	defer w.group.Wait()
	defer cancel()
	seen := []listener{at("127.0.0.1")}
	scan := func() ([]listener, error) { return seen, nil }
	w.step(ctx, scan)
	require.Len(t, w.forwards, 2)
	seen = append(seen, at("0.0.0.0"))
	w.step(ctx, scan)
	assert.Len(t, w.forwards, 1, "that of IPv6 stays")
	seen = append(seen, at("::"))
	w.step(ctx, scan)
	assert.Empty(t, w.forwards)
}

func TestP10_AFailedScanChangesNothing(t *testing.T) {
	s := newScans(t)
	watch(t, counted(s))
	inner, port := echo(t, "inner", "127.0.0.1:0")
	answers(t, "inner:hello", outside, port)
	s.fail.Store(true)
	s.pass(t, 5)
	answer, err := ask(outside, port)
	require.NoError(t, err, "a failed scan looked like no ports")
	assert.Equal(t, "inner:hello", answer)
	require.NoError(t, inner.Close())
	s.pass(t, 3)
	s.fail.Store(false)
	refuses(t, outside, port)
}

// TestP10_AForwardStays: a forward is a listener, too, which scans see.
func TestP10_AForwardStays(t *testing.T) {
	need.Root(t)
	_, port := echo(t, "inner", "127.0.0.1:0")
	w := New(Config{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	s := &scanner{}
	defer s.close()
	w.step(ctx, s.scan)
	at := netip.AddrPortFrom(netip.MustParseAddr(outside), port)
	first := w.forwards[at]
	require.NotNil(t, first)
	for range 2 * maxMissed {
		w.step(ctx, s.scan)
		require.Same(t, first, w.forwards[at])
	}
	cancel()
	for at := range w.forwards {
		w.drop(at)
	}
	w.group.Wait()
}

// TestP10_OneScanThatMissesAListenerChangesNothing: a dump of sockets is not taken at one moment.
func TestP10_OneScanThatMissesAListenerChangesNothing(t *testing.T) {
	need.Root(t)
	_, port := echo(t, "inner", "127.0.0.1:0")
	w := New(Config{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	defer w.group.Wait()
	defer cancel()
	there := []listener{{at: netip.AddrPortFrom(loopback4, port), inode: 1}}
	for i, seen := range [][]listener{there, nil, there, nil} {
		w.step(ctx, func() ([]listener, error) { return seen, nil })
		assert.Len(t, w.forwards, 2, "scan %d", i)
	}
	w.step(ctx, func() ([]listener, error) { return nil, nil })
	assert.Empty(t, w.forwards, "two in a row say that it is gone")
}

func TestP10_HalfClosesAndResetsPassThrough(t *testing.T) {
	watch(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	got := make(chan *net.TCPConn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			got <- c.(*net.TCPConn)
		}
	}()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	pair := func() (client, server *net.TCPConn) {
		t.Helper()
		require.Eventually(t, func() bool {
			c, err := net.Dial("tcp", net.JoinHostPort(outside, strconv.Itoa(int(port))))
			if err != nil {
				return false
			}
			client = c.(*net.TCPConn)
			return true
		}, deadline, 5*time.Millisecond)
		server = <-got
		for _, c := range []net.Conn{client, server} {
			require.NoError(t, c.SetDeadline(time.Now().Add(deadline)))
			t.Cleanup(func() { _ = c.Close() })
		}
		return client, server
	}
	// The client ends first, and still gets an answer.
	client, server := pair()
	require.NoError(t, client.CloseWrite())
	_, err = io.ReadAll(server)
	require.NoError(t, err)
	_, err = io.WriteString(server, "after your end")
	require.NoError(t, err)
	require.NoError(t, server.CloseWrite())
	answer, err := io.ReadAll(client)
	require.NoError(t, err)
	assert.Equal(t, "after your end", string(answer))
	// The server ends first, and still hears.
	client, server = pair()
	require.NoError(t, server.CloseWrite())
	_, err = io.ReadAll(client)
	require.NoError(t, err)
	_, err = io.WriteString(client, "still here")
	require.NoError(t, err)
	require.NoError(t, client.CloseWrite())
	heard, err := io.ReadAll(server)
	require.NoError(t, err)
	assert.Equal(t, "still here", string(heard))
	// Either side breaks.
	client, server = pair()
	require.NoError(t, client.SetLinger(0))
	require.NoError(t, client.Close())
	_, err = io.ReadAll(server)
	require.ErrorContains(t, err, "reset")
	client, server = pair()
	require.NoError(t, server.SetLinger(0))
	require.NoError(t, server.Close())
	_, err = io.ReadAll(client)
	require.ErrorContains(t, err, "reset")
	// A connection goes on when the program has closed its listener.
	client, server = pair()
	require.NoError(t, l.Close())
	refuses(t, outside, port)
	_, err = io.WriteString(client, "late")
	require.NoError(t, err)
	buf := make([]byte, 4)
	_, err = io.ReadFull(server, buf)
	require.NoError(t, err)
	assert.Equal(t, "late", string(buf))
}

func TestP10_ConnectionsAreBounded(t *testing.T) {
	watch(t, nil)
	_, port := echo(t, "x", "127.0.0.1:0")
	_, other := echo(t, "y", "127.0.0.1:0")
	answers(t, "x:hello", outside, port)
	answers(t, "y:hello", outside, other)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	served := func() bool {
		c, err := net.Dial("tcp", net.JoinHostPort(outside, strconv.Itoa(int(port))))
		if err != nil {
			return false // reset before the dial had returned
		}
		held = append(held, c)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(deadline)))
		_, err = io.ReadFull(c, make([]byte, 2))
		return err == nil
	}
	n := 0
	for served() {
		n++
		require.LessOrEqual(t, n, maxPortConns, "one more than the bound")
	}
	assert.GreaterOrEqual(t, n, maxPortConns-1) // an earlier question may not have ended quite
	answers(t, "y:hello", outside, other)
	for _, c := range held {
		require.NoError(t, c.Close())
	}
	held = nil
	answers(t, "x:hello", outside, port)
}

// TestP10_AThousandPorts opens, uses and closes as many as are forwarded; nothing may stay.
func TestP10_AThousandPorts(t *testing.T) {
	s := newScans(t)
	goroutines := runtime.NumGoroutine()
	watch(t, counted(s))
	const n = 500 // two forwards each
	ports := make([]uint16, n)
	listeners := make([]net.Listener, n)
	for i := range n {
		listeners[i], ports[i] = echo(t, "x", "127.0.0.1:0")
	}
	begun := time.Now()
	var all sync.WaitGroup
	for _, p := range ports {
		all.Go(func() {
			var got string
			for end := time.Now().Add(deadline); got != "x:hello" && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				got, _ = ask(outside, p)
			}
			assert.Equal(t, "x:hello", got)
		})
	}
	all.Wait()
	t.Logf("%d ports answered after %v", n, time.Since(begun))
	other := &scanner{}
	defer other.close()
	one := time.Now()
	found, err := other.scan()
	require.NoError(t, err)
	t.Logf("a scan of %d listeners took %v", len(found), time.Since(one))
	for _, l := range listeners {
		require.NoError(t, l.Close())
	}
	for _, p := range ports {
		refuses(t, outside, p)
	}
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+5 }, deadline, 10*time.Millisecond, "goroutines stayed")
}

func TestP10_ForwardsAreBounded(t *testing.T) {
	need.Root(t)
	w := New(Config{Logger: slog.New(slog.DiscardHandler), Addresses: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr(outside)}, nil }})
	ctx, cancel := context.WithCancel(t.Context())
	defer w.group.Wait()
	defer func() {
		cancel()
		for at := range w.forwards {
			w.drop(at)
		}
	}()
	var many []listener
	for port := range uint16(maxForwards + 50) {
		many = append(many, listener{at: netip.AddrPortFrom(loopback4, 20000+port), inode: 1})
	}
	w.step(ctx, func() ([]listener, error) { return many, nil })
	assert.Len(t, w.forwards, maxForwards)
	// Where some go, others get their turn.
	for range maxMissed {
		w.step(ctx, func() ([]listener, error) { return many[100:], nil })
	}
	assert.Len(t, w.forwards, maxForwards-50)
}
