package session

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/envdclient"
)

const cat = `{"type":"start","cmd":"sh","args":["-c","stty raw -echo; echo ready; exec cat"]}`

func TestG02_ATerminal(t *testing.T) {
	d := open(t, Clocks{})
	v := d.start("/pty", `{"type":"start","cmd":"sh","args":["-c","stty size; echo $A $TERM; pwd; read x; stty size; echo got-$x; exit 3"],"cols":101,"rows":33,"cwd":"/","env":{"A":"b"}}`)
	v.until("33 101")
	v.until("b xterm-256color\r\n/\r\n")
	v.say(`{"type":"ping"}`)
	assert.Equal(t, "pong", v.control().Type)
	v.say(`{"type":"resize","cols":77,"rows":22}`)
	v.input("žluť\n")
	v.until("22 77")
	v.until("got-žluť")
	v.exits(3)
	// The shell that one gets without asking.
	v = d.start("/pty", `{"type":"start"}`)
	v.input("echo $((6*7)) $0; exit\n")
	v.until("42 /bin/bash")
	v.exits(0)
}

func TestG02_AProgramWithPipes(t *testing.T) {
	d := open(t, Clocks{})
	v := d.start("/exec", `{"type":"start","cmd":"sh","args":["-c","cat; echo err >&2; exit 7"],"stdin":true}`)
	v.input("one ")
	v.input("two")
	v.input("")
	v.say(`{"type":"eof"}`)
	v.exits(7)
	assert.Equal(t, "one two", v.byName[channelStdout].String())
	assert.Equal(t, "err\n", v.byName[channelStderr].String())
	// Without standard input, and ended by a signal.
	v = d.start("/exec", `{"type":"start","cmd":"sh","args":["-c","cat; echo no input; sleep 300"]}`)
	v.until("no input")
	v.input("dropped, as by a pipe that is closed")
	v.say(`{"type":"signal","signal":"SIGTERM"}`)
	v.exits(-1)
}

// TestG02_TheEndNeverOvertakesOutput has a reader that is slower than the program, but reads.
func TestG02_TheEndNeverOvertakesOutput(t *testing.T) {
	d := open(t, Clocks{Farewell: 500 * time.Millisecond})
	const size = 6 << 20 // less than the queues hold, so that the program ends long before its reader
	v := d.start("/exec", fmt.Sprintf(`{"type":"start","cmd":"sh","args":["-c","head -c %d /dev/zero"]}`, size))
	ended := time.Now()
	for v.seen.Len() < size {
		r, err := v.next()
		require.NoError(t, err)
		require.Nil(t, r, "the end came after %d bytes", v.seen.Len())
		time.Sleep(10 * time.Millisecond)
	}
	require.Greater(t, time.Since(ended), time.Second, "the reader was not slow")
	v.exits(0)
}

func TestG02_ShortProgramsLoseNothing(t *testing.T) {
	d := open(t, Clocks{})
	for i := range 50 {
		v := d.start("/exec", fmt.Sprintf(`{"type":"start","cmd":"echo","args":["%d"]}`, i))
		v.exits(0)
		assert.Equal(t, fmt.Sprintf("%d\n", i), v.seen.String())
	}
}

func TestG02_InputKeepsItsOrder(t *testing.T) {
	d := open(t, Clocks{})
	v := d.start("/pty", cat)
	v.until("ready\n")
	v.seen.Reset()
	const n = 10_000
	go func() {
		for i := range n {
			if v.conn.Write(v.ctx, websocket.MessageBinary, []byte{'a' + byte(i%23)}) != nil {
				return
			}
		}
	}()
	begun := time.Now()
	for v.seen.Len() < n {
		_, err := v.next()
		require.NoError(t, err)
	}
	t.Logf("%d keystrokes came back after %v", n, time.Since(begun))
	for i, c := range []byte(v.seen.String()) {
		require.Equal(t, 'a'+byte(i%23), c, "keystroke %d", i)
	}
	assert.Positive(t, d.asked.Load(), "no echo was sent at once")
}

// TestG02_BytesAreNotCharacters splits characters over messages both ways, and sends what is none.
func TestG02_BytesAreNotCharacters(t *testing.T) {
	d := open(t, Clocks{})
	v := d.start("/pty", cat)
	v.until("ready\n")
	v.seen.Reset()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	text := strings.Repeat("žluťoučký kůň 🐎 \xff\xfe\x00 ", 200)
	for rest := text; rest != ""; {
		n := min(1+rnd.IntN(5), len(rest))
		v.input(rest[:n])
		rest = rest[n:]
	}
	for v.seen.Len() < len(text) {
		_, err := v.next()
		require.NoError(t, err)
	}
	assert.Equal(t, text, v.seen.String())
}

func TestG02_ViewersComeAndGo(t *testing.T) {
	d := open(t, Clocks{})
	first := d.start("/pty", `{"type":"start","cmd":"sh","args":["-c","stty -echo; echo before; while read x; do echo got-$x; done"]}`)
	first.until("before")
	attach := fmt.Sprintf(`{"type":"attach","pid":%d`, first.pid)
	var viewers []*viewer
	for range 7 {
		v := d.start("/pty", attach+`}`)
		assert.Equal(t, first.pid, v.pid)
		v.until("before") // what was shown earlier
		viewers = append(viewers, v)
	}
	reader := d.start("/pty", attach+`,"readOnly":true}`)
	viewers = append(viewers, first, reader)
	viewers[0].input("hello\n")
	for _, v := range viewers {
		v.until("got-hello")
	}
	// One that leaves ends nothing.
	require.NoError(t, viewers[1].conn.CloseNow())
	require.NoError(t, first.conn.Close(websocket.StatusNormalClosure, ""))
	reader.input("may not\n")
	assert.Contains(t, reader.fails(websocket.StatusPolicyViolation), "read-only")
	viewers[0].input("still\n")
	viewers[2].until("got-still")
	assert.NotContains(t, viewers[2].seen.String(), "may not")
	reader = d.start("/pty", attach+`,"readOnly":true}`)
	reader.say(`{"type":"signal","signal":"SIGKILL"}`)
	assert.Contains(t, reader.fails(websocket.StatusPolicyViolation), "read-only")
	viewers[0].say(`{"type":"signal","signal":"SIGKILL"}`)
	viewers[2].exits(-1)
	// The end is remembered for a while.
	late := d.start("/pty", attach+`}`)
	late.exits(-1)
	assert.Contains(t, late.seen.String(), "got-still")
}

func TestG02_AKillingConnection(t *testing.T) {
	d := open(t, Clocks{})
	for _, kill := range []bool{true, false} {
		v := d.start("/exec", fmt.Sprintf(`{"type":"start","cmd":"sleep","args":["300"],"kill":%v}`, kill))
		require.NoError(t, v.conn.CloseNow())
		watch, err := d.guest.Attach(v.ctx, v.pid, false)
		require.NoError(t, err)
		ended := make(chan bool, 1)
		go func() {
			ev, err := watch.Next()
			ended <- err == nil && ev.Kind == envdclient.Ended
		}()
		select {
		case really := <-ended:
			assert.True(t, kill && really, "kill %v, the program ended: %v", kill, really)
			ended <- really
		case <-time.After(map[bool]time.Duration{true: wait, false: 300 * time.Millisecond}[kill]):
			assert.False(t, kill, "the program outlives its client")
		}
		require.NoError(t, watch.Close())
		<-ended
	}
}

// TestG02_InputThatNobodyReadsIsNotDropped fills every buffer on the way; then the program reads.
func TestG02_InputThatNobodyReadsIsNotDropped(t *testing.T) {
	d := open(t, Clocks{Ping: time.Second}) // a client that is not read cannot answer, and is spared
	file := t.TempDir() + "/go"
	v := d.start("/exec", `{"type":"start","cmd":"sh","args":["-c","echo ready; while [ ! -e $GO ]; do sleep 0.05; done; cksum"],"stdin":true,"env":{"GO":"`+file+`"}}`)
	v.until("ready")
	const size = 24 << 20
	piece := strings.Repeat("x", 64<<10)
	read := make(chan struct{})
	go func() { // all the time, as clients do: it answers probes
		defer close(read)
		v.exits(0)
	}()
	sent := make(chan int, size)
	go func() {
		for n := 0; n < size; n += len(piece) {
			if v.conn.Write(v.ctx, websocket.MessageBinary, append([]byte{channelStdin}, piece...)) != nil {
				return
			}
			sent <- n + len(piece)
		}
		_ = v.conn.Write(v.ctx, websocket.MessageText, []byte(`{"type":"eof"}`))
	}()
	last := 0
	for quiet := false; !quiet; {
		select {
		case last = <-sent:
		case <-time.After(3 * time.Second):
			quiet = true
		}
	}
	assert.Less(t, last, size, "the client was read on and on")
	t.Logf("the client was stopped after %d bytes", last)
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	<-read
	assert.Contains(t, v.seen.String(), fmt.Sprintf(" %d\n", size))
}

func TestG02_WhatIsRefused(t *testing.T) {
	d := open(t, Clocks{Open: 300 * time.Millisecond})
	for first, want := range map[string]struct {
		code    websocket.StatusCode
		message string
	}{
		`{"type":"start","cmd":"no-such-program"}`:         {CloseRefused, "no-such-program"},
		`{"type":"start","cmd":"sh","cwd":"/no/such"}`:     {CloseRefused, "/no/such"},
		`{"type":"start","cmd":"sh","user":"nobody-here"}`: {CloseRefused, "nobody-here"},
		`{"type":"attach","pid":4000000}`:                  {CloseRefused, "4000000"},
		`{"type":"ping"}`:                                  {websocket.StatusPolicyViolation, "start or attach"},
		`{"type":"start","what":1}`:                        {websocket.StatusPolicyViolation, "what"},
		`{"type":"start"}{}`:                               {websocket.StatusPolicyViolation, "one JSON object"},
		`{"type":"start","cols":65536,"rows":1}`:           {websocket.StatusPolicyViolation, "cols"},
		`{"type":"start","cmd":"sh","cols":1}`:             {CloseRefused, "pty.size"},
		`not json`:                                         {websocket.StatusPolicyViolation, "JSON"},
	} {
		assert.Contains(t, d.connect("/pty", first).fails(want.code), want.message, first)
	}
	binary := d.connect("/pty", "")
	binary.input("x")
	assert.Contains(t, binary.fails(websocket.StatusPolicyViolation), "must be text")
	silent := d.connect("/pty", "")
	assert.Contains(t, silent.closed(websocket.StatusPolicyViolation), "in time")
	for _, bad := range []string{`{"type":"start"}`, `{"type":"signal","signal":"SIGHUP"}`, `{"type":"resize","cols":0,"rows":1}`, `{"type":"eof"}`, `{"type":"nonsense"}`, `[]`} {
		v := d.start("/pty", `{"type":"start","cmd":"sleep","args":["300"],"kill":true}`)
		v.say(bad)
		v.fails(websocket.StatusPolicyViolation)
	}
	v := d.start("/exec", `{"type":"start","cmd":"sleep","args":["300"],"kill":true}`)
	require.NoError(t, v.conn.Write(v.ctx, websocket.MessageBinary, []byte{9, 'x'}))
	v.fails(websocket.StatusPolicyViolation)
	v = d.start("/exec", `{"type":"start","cmd":"sleep","args":["300"],"stdin":true,"kill":true}`)
	require.NoError(t, v.conn.Write(v.ctx, websocket.MessageBinary, make([]byte, maxMessage+1)))
	_, err := v.next()
	assert.Equal(t, websocket.StatusMessageTooBig, websocket.CloseStatus(err), "%v", err)
	// No WebSocket at all.
	w := httptest.NewRecorder()
	Serve(t.Context(), w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/pty", nil), Config{Guest: d.guest})
	assert.Equal(t, http.StatusUpgradeRequired, w.Code)
}
