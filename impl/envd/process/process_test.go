package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/freezer"
	"wrenn/impl/need"
)

func TestG02_ShortCommandsLoseNothing(t *testing.T) {
	tab := newTable(t, 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 25 {
				r := run(t, tab, shell(t, fmt.Sprintf("echo %d; echo e%d >&2; exit 7", i, i)))
				assert.Equal(t, fmt.Sprintf("%d\n", i), r.stdout)
				assert.Equal(t, fmt.Sprintf("e%d\n", i), r.stderr)
				assert.Equal(t, Exit{Code: 7, Exited: true, Status: "exit status 7"}, r.ends[0])
			}
		})
	}
	wg.Wait()
}

func TestG02_ExitNeverOvertakesOutput(t *testing.T) {
	tab := newTable(t, 0)
	const size = 3 << 20
	for _, terminal := range []bool{false, true} {
		spec := shell(t, fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size))
		if terminal {
			spec.Terminal = &defaultSize
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				r := run(t, tab, spec)
				assert.Equal(t, size, strings.Count(r.stdout+r.terminal, "x"))
			})
		}
		wg.Wait()
	}
}

func TestG02_SignalsAreToldApartFromExits(t *testing.T) {
	r := run(t, newTable(t, 0), shell(t, "kill -TERM $$"))
	assert.Equal(t, Exit{Code: -1, Exited: false, Status: "signal: terminated"}, r.ends[0])
}

func TestG02_LeftBehindProcessDoesNotHoldTheEnd(t *testing.T) {
	tab := newTable(t, 0)
	for name, script := range map[string]string{
		"quiet":  "sleep 300 & echo $!",
		"chatty": "(while :; do echo x; done) & echo $! >&2",
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, tab, shell(t, script))
			pid := strings.TrimSpace(r.stderr)
			if name == "quiet" {
				pid = strings.TrimSpace(r.stdout)
			}
			n, err := strconv.Atoi(pid)
			require.NoError(t, err, "%q", pid)
			t.Cleanup(func() { _ = unix.Kill(n, unix.SIGKILL) })
			// Nobody reads it any more, and yet it must neither block nor die of that.
			assert.Never(t, func() bool { return !alive(pid) }, 300*time.Millisecond, 50*time.Millisecond)
		})
	}
}

func TestG02_OutputOfAFilterThatOutlivesTheShellArrives(t *testing.T) {
	need.Program(t, "bash")
	spec := shell(t, "exec > >(sleep 0.05; tr a-z A-Z); echo hello")
	spec.Cmd = "bash"
	assert.Equal(t, "HELLO\n", run(t, newTable(t, 0), spec).stdout)
}

func TestG02_WholeGroupIsSignalled(t *testing.T) {
	tab := newTable(t, 0)
	for name, end := range map[string]func(*Process){
		"signal":   func(p *Process) { require.NoError(t, p.signal(unix.SIGKILL)) },
		"deadline": func(*Process) {},
	} {
		t.Run(name, func(t *testing.T) {
			spec := shell(t, "sleep 300 & echo $!; wait")
			if name == "deadline" {
				spec.Deadline = time.Now().Add(time.Second)
			}
			p, sub, err := tab.Start(spec)
			require.NoError(t, err)
			first := <-sub.Events()
			child := strings.TrimSpace(string(first.Data))
			require.True(t, alive(child))
			end(p)
			r := drain(t, sub)
			require.Len(t, r.ends, 1)
			assert.Equal(t, "signal: killed", r.ends[0].Status)
			assert.Eventually(t, func() bool { return !alive(child) }, deadline, 10*time.Millisecond)
			require.ErrorIs(t, p.signal(unix.SIGKILL), ErrNotFound)
		})
	}
}

func TestG02_AttachSeesRunningAndLatelyEndedOnes(t *testing.T) {
	tab := newTable(t, 0)
	tag := "mine"
	spec := shell(t, "read x; echo got $x; exit 4")
	spec.Tag = &tag
	p, sub, err := tab.Start(spec)
	require.NoError(t, err)
	_, second, err := tab.Attach(Selector{Tag: &tag})
	require.NoError(t, err)
	require.Len(t, tab.List(), 1)
	require.NoError(t, p.Write(within(t), []byte("it\n"), false))
	for _, s := range []*Subscription{sub, second} {
		r := drain(t, s)
		assert.Equal(t, "got it\n", r.stdout)
		assert.Len(t, r.ends, 1)
	}
	_, late, err := tab.Attach(Selector{PID: p.PID})
	require.NoError(t, err)
	assert.Equal(t, 4, drain(t, late).ends[0].Code)
	require.Eventually(t, func() bool { return len(tab.List()) == 0 }, deadline, time.Millisecond)
	_, err = tab.Find(Selector{PID: p.PID})
	require.ErrorIs(t, err, ErrNotFound)
	_, _, err = tab.Attach(Selector{PID: 1 << 30})
	require.ErrorIs(t, err, ErrNotFound)
}

func TestG02_EndIsRememberedFor30Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable(t, 0)
		p := &Process{PID: 42, fan: newFanout(time.Second, nil), ended: make(chan struct{})}
		tab.live = []*Process{p}
		p.fan.finish(Exit{})
		close(p.ended)
		tab.retire(p)
		time.Sleep(remember - time.Second)
		_, _, err := tab.Attach(Selector{PID: 42})
		require.NoError(t, err)
		time.Sleep(2 * time.Second)
		_, _, err = tab.Attach(Selector{PID: 42})
		require.ErrorIs(t, err, ErrNotFound)
	})
}

func TestG02_NewestOfOneTagIsMeant(t *testing.T) {
	tab := newTable(t, 0)
	var last *Process
	for _, tag := range []string{"a", "b", "a", "c"} {
		spec := shell(t, "sleep 300")
		spec.Tag = &tag
		p, sub, err := tab.Start(spec)
		require.NoError(t, err)
		sub.Close()
		if tag == "a" {
			last = p
		}
	}
	tag := "a"
	p, err := tab.Find(Selector{Tag: &tag})
	require.NoError(t, err)
	assert.Same(t, last, p)
}

func TestCommandsThatCannotRunAreRefused(t *testing.T) {
	tab := newTable(t, 0)
	plain := filepath.Join(t.TempDir(), "plain")
	require.NoError(t, os.WriteFile(plain, []byte("x"), 0o644))
	broken := filepath.Join(t.TempDir(), "broken")
	require.NoError(t, os.WriteFile(broken, []byte("#!/no/such/interpreter\n"), 0o755))
	before := openFiles(t)
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
		perm   bool
	}{
		"missing program":     {func(s *Spec) { s.Cmd = "no-such-program" }, "not found in PATH", false},
		"missing path":        {func(s *Spec) { s.Cmd = "/no/such/program" }, "no such file", false},
		"directory":           {func(s *Spec) { s.Cmd = "/tmp" }, "is a directory", false},
		"not executable":      {func(s *Spec) { s.Cmd = plain }, "permission denied", true},
		"broken interpreter":  {func(s *Spec) { s.Cmd = broken }, "no such file", false},
		"missing directory":   {func(s *Spec) { s.Dir = "/no/such/dir" }, "working directory", false},
		"directory is a file": {func(s *Spec) { s.Dir = plain }, "not a directory", false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, terminal := range []bool{false, true} {
				spec := shell(t, "true")
				c.change(&spec)
				if terminal {
					spec.Terminal = &defaultSize
				}
				_, _, err := tab.Start(spec)
				require.ErrorIs(t, err, ErrCommand)
				require.ErrorContains(t, err, c.want)
				assert.Equal(t, c.perm, os.IsPermission(err) || strings.Contains(err.Error(), os.ErrPermission.Error()))
			}
		})
	}
	// Fewer are no leak: an earlier test's last descriptors close after its end is told.
	assert.LessOrEqual(t, openFiles(t), before, "descriptors are left open")
}

func TestProgramIsFoundInItsOwnPathAndDirectory(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tool"), []byte("#!/bin/sh\necho found $0\n"), 0o755))
	tab := newTable(t, 0)
	for _, cmd := range []string{"tool", "./tool"} {
		spec := shell(t, "")
		spec.Cmd, spec.Args, spec.Dir = cmd, nil, dir
		spec.Env = []string{"PATH=/nowhere:" + dir}
		assert.Contains(t, run(t, tab, spec).stdout, "found")
	}
}

func TestProcessesRunAsTheirUser(t *testing.T) {
	need.Root(t)
	u, err := account.Lookup("nobody")
	require.NoError(t, err)
	u.Groups = append(u.Groups, 4242)
	for _, size := range []*Size{nil, &defaultSize} {
		spec := shell(t, "id -u; id -G; echo x > /proc/self/fd/1; cat /proc/self/oom_score_adj; nice")
		spec.User, spec.Terminal = u, size
		r := run(t, newTable(t, 0), spec)
		got := strings.Fields(r.stdout + r.terminal)
		assert.Equal(t, []string{"65534", "65534", "4242", "x", "0", "0"}, got)
	}
}

func TestChildrenOfAProtectedDaemonAreNotProtected(t *testing.T) {
	own := func() string {
		raw, err := os.ReadFile("/proc/self/oom_score_adj")
		require.NoError(t, err)
		return strings.TrimSpace(string(raw))
	}
	// A score above one's own can be taken, and given back, without privileges.
	was, err := strconv.Atoi(own())
	require.NoError(t, err)
	children := strconv.Itoa(min(1000, was+100))
	tab := newTable(t, 0)
	tab.oom = &oomScore{self: own(), children: children}
	for range 5 {
		assert.Equal(t, children, strings.TrimSpace(run(t, tab, shell(t, "cat /proc/self/oom_score_adj")).stdout))
		assert.Equal(t, strconv.Itoa(was), own())
	}
}

func TestNothingIsLeftOpen(t *testing.T) {
	tab := newTable(t, 0)
	one := func(terminal bool) {
		spec := shell(t, "cat >/dev/null & echo x")
		if terminal {
			spec = shell(t, "echo x")
			spec.Terminal = &defaultSize
		}
		run(t, tab, spec)
	}
	one(true)
	one(false)
	before := openFiles(t)
	for i := range 40 {
		one(i%2 == 0)
	}
	// The last descriptors close after the end is told.
	assert.Eventually(t, func() bool { return openFiles(t) <= before }, deadline, 10*time.Millisecond,
		"%d descriptors before, %d after", before, openFiles(t))
}

func TestCloseEndsEverything(t *testing.T) {
	tab := NewTable(newTable(t, 0).log, 0, false, &freezer.Freezer{})
	p, sub, err := tab.Start(shell(t, "trap '' TERM; sleep 300; sleep 300"))
	require.NoError(t, err)
	tab.Close(deadline)
	assert.False(t, alive(strconv.Itoa(p.PID)))
	assert.Len(t, drain(t, sub).ends, 1)
}

func TestCancelledContextDoesNotReachTheProcess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tab := newTable(t, 0)
	p, sub, err := tab.Start(shell(t, "cat"))
	require.NoError(t, err)
	cancel()
	require.Error(t, p.Write(ctx, make([]byte, 1<<20), false))
	require.NoError(t, p.CloseStdin(within(t)))
	assert.Equal(t, 0, drain(t, sub).ends[0].Code)
}
