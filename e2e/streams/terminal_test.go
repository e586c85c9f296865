package streams_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/envdclient"
)

// interruptBound is what Ctrl-C may take in a test on a noisy machine; the promise, 100 ms, is reported.
const interruptBound = 5 * time.Second

// TestG02_CtrlCDuringAFlood interrupts `yes` of a real shell.
func TestG02_CtrlCDuringAFlood(t *testing.T) {
	c := start(t)
	box := c.Create()
	v := view(t, c, box, "pty", `{"type":"start","cmd":"/bin/bash","args":["--norc"],"env":{"PS1":"prompt> "}}`)
	v.until("prompt> ")
	var took []time.Duration
	for i := range 8 {
		v.seen.Reset()
		v.input("yes flood\n")
		v.until(strings.Repeat("flood\r\n", 20_000)) // it runs in full
		begun := time.Now()
		v.input("\x03")
		v.until("^C")
		took = append(took, time.Since(begun))
		v.until("prompt> ")
		v.seen.Reset()
		v.input(fmt.Sprintf("echo after-$((%d+1))\n", i))
		v.until(fmt.Sprintf("after-%d\r\n", i+1))
		assert.NotContains(t, v.seen.String(), "flood\r\n", "the flood goes on after the prompt")
	}
	mid, worst := median(took)
	t.Logf("Ctrl-C during yes was echoed after %v (median), %v (worst) of %d", mid, worst, len(took))
	assert.Less(t, mid, interruptBound)
	v.input("exit 5\n")
	v.exits(5)
}

// TestG02_KeystrokesAndBytesThroughTheWholeChain: in order, none lost, and not taken for characters.
func TestG02_KeystrokesAndBytesThroughTheWholeChain(t *testing.T) {
	c := start(t)
	box := c.Create()
	v := view(t, c, box, "pty", `{"type":"start","cmd":"sh","args":["-c","stty raw -echo; echo ready; exec cat"]}`)
	v.until("ready\n")
	v.seen.Reset()
	const n = 10_000
	want := &strings.Builder{}
	for want.Len() < n {
		fmt.Fprintf(want, "%d žluť 🐎 \xff", want.Len())
	}
	begun := time.Now()
	go func() {
		for _, b := range []byte(want.String()) {
			if v.conn.Write(v.ctx, websocket.MessageBinary, []byte{b}) != nil {
				return
			}
		}
	}()
	for v.seen.Len() < want.Len() {
		_, err := v.next()
		require.NoError(t, err)
	}
	t.Logf("%d single bytes came back after %v", want.Len(), time.Since(begun))
	assert.Equal(t, want.String(), v.seen.String())

	// One at a time, by both doors.
	single := func(write func(string) error, read func(string) error) (mid, worst time.Duration) {
		var took []time.Duration
		for i := range 200 {
			key := string(rune('a' + i%26))
			at := time.Now()
			require.NoError(t, write(key))
			require.NoError(t, read(key))
			took = append(took, time.Since(at))
		}
		return median(took)
	}
	mid, worst := single(func(key string) error { return v.conn.Write(v.ctx, websocket.MessageBinary, []byte(key)) }, func(key string) error {
		_, data, err := v.conn.Read(v.ctx)
		assert.Equal(t, key, string(data))
		return err
	})
	t.Logf("a keystroke and its echo by WebSocket: %v (median), %v (worst)", mid, worst)
	s, err := c.Guest(box).PTY(v.ctx, envdclient.PTYRequest{Cmd: "sh", Args: []string{"-c", "stty raw -echo; echo ready; exec cat"}})
	require.NoError(t, err)
	defer s.Close()
	ready := make([]byte, len("ready\n"))
	_, err = io.ReadFull(s, ready)
	require.NoError(t, err)
	mid, worst = single(func(key string) error { _, err := io.WriteString(s, key); return err }, func(key string) error {
		one := make([]byte, 1)
		_, err := io.ReadFull(s, one)
		assert.Equal(t, key, string(one))
		return err
	})
	t.Logf("the same by Connect and the sandbox proxy: %v (median), %v (worst)", mid, worst)
}

// TestG02_ViewersOfOneTerminal: eight see the same, and each but one that stalls sees all.
func TestG02_ViewersOfOneTerminal(t *testing.T) {
	c := start(t)
	box := c.Create()
	first := view(t, c, box, "pty", `{"type":"start","cmd":"sh","args":["-c","stty -echo -onlcr; echo before; read x; seq 1 3000000; echo END-$x; read y; exit 4"]}`)
	first.until("before")
	viewers := []*viewer{first}
	for range 7 {
		v := view(t, c, box, "pty", attach(first.pid))
		v.until("before")
		viewers = append(viewers, v)
	}
	stalled := view(t, c, box, "pty", attach(first.pid))
	var want strings.Builder
	for i := range 3000000 {
		fmt.Fprintln(&want, i+1)
	}
	// The one that stalls is cut off a second after its queues have filled, and has five more to read why. What the first has
	// seen tells when they were full; all that the others read may take longer.
	full := make(chan struct{})
	var ending struct {
		last reply
		err  error
	}
	var told sync.WaitGroup
	told.Go(func() {
		<-full
		time.Sleep(2 * time.Second)
		ending.last, ending.err = stalled.rest()
	})
	first.input("go\n")
	done := make(chan error, len(viewers))
	for _, v := range viewers {
		go func() {
			isFull := sync.OnceFunc(func() { close(full) })
			if v == first {
				defer isFull()
			}
			for !strings.HasSuffix(v.seen.String(), "END-go\n") {
				r, err := v.next()
				if v == first && v.seen.Len() > 10<<20 {
					isFull()
				}
				if err == nil && r != nil {
					err = fmt.Errorf("a viewer that reads was told %+v", r)
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range viewers {
		require.NoError(t, <-done)
	}
	for i, v := range viewers {
		_, after, _ := strings.Cut(v.seen.String(), "before\n")
		assert.True(t, strings.HasPrefix(after, want.String()), "viewer %d misses output", i)
	}
	told.Wait()
	assert.EqualValues(t, 4001, websocket.CloseStatus(ending.err), "%+v: %v", ending.last, ending.err)
	assert.Contains(t, ending.last.Message, "attach again")
	again := view(t, c, box, "pty", attach(first.pid))
	again.until("END-go")
	assert.LessOrEqual(t, again.seen.Len(), 1<<20, "the replay is bounded")
	assert.Greater(t, again.seen.Len(), 900<<10)
	again.input("\n")
	for _, v := range append(viewers, again) {
		v.exits(4)
	}
}

// TestG02_ReattachAfterTheAgentWasKilled: the program does not notice, its viewer is told and comes back.
func TestG02_ReattachAfterTheAgentWasKilled(t *testing.T) {
	c := start(t)
	box := c.Create()
	v := view(t, c, box, "pty", `{"type":"start","cmd":"sh","args":["-c","stty -echo; echo before; while read x; do echo got-$x; done"]}`)
	v.until("before")
	bystander, err := c.Guest(box).PTY(v.ctx, envdclient.PTYRequest{Cmd: "sh", Args: []string{"-c", "echo mine; read x; exit 6"}})
	require.NoError(t, err)
	defer bystander.Close()
	c.Nodes[0].Agent.Kill()
	r, code := v.ends()
	assert.EqualValues(t, 4000, code, "%+v", r)
	_, err = io.Copy(io.Discard, bystander)
	require.Error(t, err, "a broken stream must not look like the program's end")
	c.Nodes[0].Restart()
	var again *viewer
	require.Eventually(t, func() bool {
		again, err = tryView(t, c, box, "pty", attach(v.pid))
		return err == nil
	}, harness.Patience, 50*time.Millisecond)
	again.until("before")
	again.input("hello\n")
	again.until("got-hello")
	back, err := c.Guest(box).AttachPTY(v.ctx, bystander.PID)
	require.NoError(t, err)
	defer back.Close()
	mine := make([]byte, 4)
	_, err = io.ReadFull(back, mine)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(mine))
	_, err = io.WriteString(back, "\n")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, back)
	require.NoError(t, err)
	exit, err := back.Wait()
	require.NoError(t, err)
	assert.Equal(t, 6, exit.Code)
}

// TestG02_ProgramsByWebSocket: channels, order of the end, short ones, signals to the group.
func TestG02_ProgramsByWebSocket(t *testing.T) {
	c := start(t)
	box := c.Create()
	for i := range 30 {
		v := view(t, c, box, "exec", fmt.Sprintf(`{"type":"start","cmd":"echo","args":["%d"]}`, i))
		v.exits(0)
		assert.Equal(t, fmt.Sprintf("%d\n", i), v.seen.String())
	}
	v := view(t, c, box, "exec", `{"type":"start","cmd":"sh","args":["-c","wc -c; exit 3"],"stdin":true}`)
	const size = 8 << 20
	for range size / (64 << 10) {
		v.input(strings.Repeat("x", 64<<10))
	}
	v.say(`{"type":"eof"}`)
	v.exits(3)
	assert.Equal(t, fmt.Sprintln(size), v.seen.String())
	v = view(t, c, box, "exec", `{"type":"start","cmd":"sh","args":["-c","sleep 300 & echo child-$!; wait"]}`)
	v.until("\n")
	child := strings.TrimSpace(strings.TrimPrefix(v.seen.String(), "child-"))
	v.say(`{"type":"signal","signal":"SIGKILL"}`)
	v.exits(-1)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	for {
		_, err := c.TryExec(box, "sh", "-c", "! kill -0 "+child+" || grep -q ') Z' /proc/"+child+"/stat")
		if err == nil {
			break
		}
		require.NoError(t, ctx.Err(), "the group's child lives on")
	}
	// A sandbox that is gone takes its viewers with it.
	v = view(t, c, box, "pty", `{"type":"start","cmd":"sleep","args":["300"]}`)
	require.NoError(t, c.Client.Kill(t.Context(), box.SandboxID))
	_, code := v.ends()
	assert.EqualValues(t, 4000, code)
}
