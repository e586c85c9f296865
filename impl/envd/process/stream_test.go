package process

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	pb "wrenn/proto/gen/envd/process"
)

func TestT05_StalledReaderIsCutOffAndStallsNobody(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %v", terminal), func(t *testing.T) {
			tab := newTable(t, 200*time.Millisecond)
			const size = 24 << 20 // three times what a queue holds
			spec := shell(t, fmt.Sprintf("read x; head -c %d /dev/zero | tr '\\0' x", size))
			if terminal {
				spec.Terminal = &defaultSize
			}
			p, reader, err := tab.Start(spec)
			require.NoError(t, err)
			defer reader.Close()
			_, stalled, err := tab.Attach(Selector{PID: p.PID})
			require.NoError(t, err)
			defer stalled.Close()
			require.NoError(t, p.Write(within(t), []byte("\n"), terminal))

			// It counts and keeps nothing: memory for 24 MiB can take longer than the patience where others have the processors.
			defer time.AfterFunc(deadline, func() { _ = p.signal(unix.SIGKILL) }).Stop()
			got, exit := 0, Exit{Code: -1}
			for ev := range reader.Events() {
				got += bytes.Count(ev.Data, []byte("x"))
				exit = ev.Exit
			}
			require.NoError(t, reader.Err())
			assert.Equal(t, size, got, "the other reader misses output")
			assert.Equal(t, 0, exit.Code)
			assert.True(t, exit.Exited, "the end comes last")

			select {
			case <-stalled.Cut():
			case <-time.After(deadline):
				require.Fail(t, "the stalled reader was not cut off")
			}
			late := drain(t, stalled)
			require.ErrorIs(t, late.err, ErrTooSlow)
			assert.Equal(t, queueLen, late.events, "what was queued before the cut is still there")
			assert.Empty(t, late.ends)
		})
	}
}

func TestT05_SlowReaderThatKeepsReadingMissesNothing(t *testing.T) {
	tab := newTable(t, deadline)
	const size = 24 << 20
	_, sub, err := tab.Start(shell(t, fmt.Sprintf("head -c %d /dev/zero", size)))
	require.NoError(t, err)
	defer sub.Close()
	got := 0
	for ev := range sub.Events() {
		got += len(ev.Data)
		time.Sleep(100 * time.Microsecond)
	}
	require.NoError(t, sub.Err())
	assert.Equal(t, size, got)
}

func TestT05_ReaderThatLeavesReleasesTheProgram(t *testing.T) {
	tab := newTable(t, deadline)
	p, sub, err := tab.Start(shell(t, "head -c 20000000 /dev/zero"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(sub.Events()) == queueLen }, deadline, time.Millisecond)
	late := time.After(deadline / 2)
	go sub.Close()
	select {
	case <-p.ended:
	case <-late:
		require.Fail(t, "the program waits for a reader that has left")
	}
}

func TestG02_InputKeepsItsOrder(t *testing.T) {
	tab := newTable(t, 0)
	p, sub, err := tab.Start(shell(t, "cat"))
	require.NoError(t, err)
	var want strings.Builder
	for i := range 2000 {
		line := fmt.Sprintf("%d\n", i)
		want.WriteString(line)
		require.NoError(t, p.Write(within(t), []byte(line), false))
	}
	require.NoError(t, p.CloseStdin(within(t)))
	assert.Equal(t, want.String(), drain(t, sub).stdout)
	require.ErrorIs(t, p.Write(within(t), []byte("x"), false), ErrInputClosed)
	require.ErrorIs(t, p.CloseStdin(within(t)), ErrInputClosed)
}

func TestG02_InputThatNobodyReads(t *testing.T) {
	tab := newTable(t, 0)
	p, sub, err := tab.Start(shell(t, "sleep 300"))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err = p.Write(ctx, make([]byte, 1<<20), false)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "65536 of 1048576 bytes taken")
	// A write that waits ends with the process.
	failed := make(chan error, 1)
	go func() { failed <- p.Write(context.WithoutCancel(ctx), make([]byte, 1<<20), false) }()
	require.NoError(t, p.signal(unix.SIGKILL))
	drain(t, sub)
	select {
	case err := <-failed:
		require.ErrorIs(t, err, ErrInputClosed)
	case <-time.After(deadline):
		require.Fail(t, "the write still waits")
	}
}

func TestG02_StdinOfDevNull(t *testing.T) {
	tab := newTable(t, 0)
	spec := shell(t, "cat; echo done")
	spec.Stdin = false
	assert.Equal(t, "done\n", run(t, tab, spec).stdout)
	spec = shell(t, "sleep 300")
	spec.Stdin = false
	p, sub, err := tab.Start(spec)
	require.NoError(t, err)
	defer sub.Close()
	require.ErrorIs(t, p.Write(within(t), []byte("x"), false), ErrInputClosed)
	require.ErrorIs(t, p.CloseStdin(within(t)), ErrInputClosed)
	require.ErrorIs(t, p.Write(within(t), []byte("x"), true), ErrNoTerminal)
	require.ErrorIs(t, p.Resize(defaultSize), ErrNoTerminal)
}

func TestG02_TerminalSizeInputAndReplay(t *testing.T) {
	tab := newTable(t, 0)
	spec := shell(t, "stty size; read a; stty size; echo got-$a; read b")
	spec.Terminal = &Size{Cols: 101, Rows: 33}
	p, sub, err := tab.Start(spec)
	require.NoError(t, err)
	require.ErrorIs(t, p.Write(within(t), []byte("x"), false), ErrTerminal)
	require.ErrorIs(t, p.CloseStdin(within(t)), ErrTerminal)
	seen := ""
	waitFor := func(what string) {
		for !strings.Contains(seen, what) {
			select {
			case ev := <-sub.Events():
				seen += string(ev.Data)
			case <-time.After(deadline):
				require.Fail(t, "never shown", "%q in %q", what, seen)
			}
		}
	}
	waitFor("33 101")
	require.NoError(t, p.Resize(Size{Cols: 77, Rows: 22}))
	require.NoError(t, p.Write(within(t), []byte("žluť\n"), true))
	waitFor("22 77")
	waitFor("got-žluť")
	sub.Close()

	_, again, err := tab.Attach(Selector{PID: p.PID})
	require.NoError(t, err)
	require.NoError(t, p.Write(within(t), []byte("end\n"), true))
	r := drain(t, again)
	assert.Contains(t, r.terminal, "33 101")
	assert.Contains(t, r.terminal, "got-žluť")
	_, late, err := tab.Attach(Selector{PID: p.PID})
	require.NoError(t, err)
	r = drain(t, late)
	assert.Contains(t, r.terminal, "got-žluť", "the output of an ended terminal is replayed")
	assert.Len(t, r.ends, 1)
}

func TestG02_TerminalRunsOnWhenNobodyWatches(t *testing.T) {
	tab := newTable(t, 0)
	spec := shell(t, "head -c 3000000 /dev/zero | tr '\\0' x; echo END")
	spec.Terminal = &defaultSize
	p, sub, err := tab.Start(spec)
	require.NoError(t, err)
	sub.Close()
	select {
	case <-p.ended:
	case <-time.After(deadline):
		require.Fail(t, "the program waits for a viewer")
	}
	_, late, err := tab.Attach(Selector{PID: p.PID})
	require.NoError(t, err)
	r := drain(t, late)
	assert.Len(t, r.terminal, ringSize)
	assert.True(t, strings.HasSuffix(r.terminal, "xEND\r\n"))
}

func TestRingKeepsTheLastMiB(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	r := &ring{}
	var all []byte
	for range 200 {
		p := make([]byte, rnd.IntN(3*readSize))
		if rnd.IntN(50) == 0 {
			p = make([]byte, ringSize+rnd.IntN(100))
		}
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		r.add(p)
		all = append(all, p...)
		all = all[max(0, len(all)-ringSize):]
		require.True(t, bytes.Equal(all, r.bytes()))
	}
}

func TestG02_OutputIsPublishedHoweverLateItsReaderIs(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	fan := newFanout(time.Second, nil)
	sub := fan.subscribe()
	defer sub.Close()
	_, err = w.WriteString("written before the exit")
	require.NoError(t, err)
	s := newSource(r, Stdout, fan)
	// The exit was long ago when the reader first gets to run, and w is still open somewhere.
	s.exited.Store(time.Now().Add(-time.Minute).UnixNano())
	require.NoError(t, r.SetReadDeadline(time.Now().Add(-time.Minute)))
	over := make(chan struct{})
	go func() { s.run(); close(over) }()
	select {
	case <-s.drained:
	case <-time.After(deadline):
		require.Fail(t, "the drain does not end")
	}
	require.Len(t, sub.Events(), 1)
	assert.Equal(t, "written before the exit", string((<-sub.Events()).Data))
	require.NoError(t, w.Close())
	<-over
}

// TestG02_ShortOutputNeedNotWaitForItsReader where there is room, and keeps its order with what has to.
func TestG02_ShortOutputNeedNotWaitForItsReader(t *testing.T) {
	fan := newFanout(deadline, nil)
	sub, other := fan.subscribe(), fan.subscribe()
	defer other.Close()
	var sent []string
	room := false
	publish := func(text string) { fan.publish(Event{Kind: Stdout, Data: []byte(text)}) }
	publish("before it is open")
	sub.path.Open(func(ev Event) error { sent = append(sent, string(ev.Data)+ev.Exit.Status); return nil }, func() bool { return room })
	room = true
	publish("behind another")
	assert.Empty(t, sent)
	for range 2 {
		require.NoError(t, sub.path.Send(<-sub.Events()))
	}
	publish("at once")
	assert.Len(t, sent, 3)
	publish(strings.Repeat("x", readSize))
	assert.Len(t, sent, 3, "a long one might have to wait")
	require.NoError(t, sub.path.Send(<-sub.Events()))
	room = false
	publish("no room")
	assert.Len(t, sent, 4)
	require.NoError(t, sub.path.Send(<-sub.Events()))
	room = true
	fan.finish(Exit{Status: "end"})
	assert.Equal(t, []string{"before it is open", "behind another", "at once", strings.Repeat("x", readSize), "no room", "end"}, sent)
	_, open := <-sub.Events()
	assert.False(t, open)
	require.NoError(t, sub.Err())
	assert.Len(t, other.Events(), 6, "the other reader has a queue of its own")
	sub.Close()
}

// TestG02_WhoseTimeIsOverIsToldSo, and not how the process ended that was killed for it, whichever comes first.
func TestG02_WhoseTimeIsOverIsToldSo(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	<-ctx.Done()
	for range 100 { // of two events that are both there a select takes either
		fan := newFanout(deadline, nil)
		sub := fan.subscribe()
		fan.finish(Exit{Code: -1})
		sent := 0
		err := relay(ctx, http.Header{}, &Process{PID: 1}, sub, func(*pb.ProcessEvent) error { sent++; return nil })
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
		require.Equal(t, 1, sent, "the start alone")
	}
}
