package uffd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

// agentMain starts a page server, says who it is, and goes, as an agent does that is killed.
func agentMain(config string) int {
	var cfg StartConfig
	err := json.Unmarshal([]byte(config), &cfg)
	if err == nil {
		var p *Process
		if p, err = Start(context.Background(), cfg); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(p.Identity())
		}
	}
	if err != nil {
		fmt.Println("failed:", err)
		return 1
	}
	return 0
}

func (r *rig) startConfig() StartConfig {
	return StartConfig{Config: r.config(), LogPath: r.dir + "/pager.log"}
}

func awaitEnd(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		require.FailNow(t, "the page server does not end")
	}
}

func TestS10_ThePageServerSurvivesItsAgent(t *testing.T) {
	r := newRig(t, 1000)
	config, err := json.Marshal(r.startConfig())
	require.NoError(t, err)
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), playAgent+"="+string(config))
	out, err := agent.Output()
	require.NoError(t, err, string(out))
	var id Identity
	require.NoError(t, json.Unmarshal(out, &id), string(out))

	v := r.startVMM(t, play{})
	v.says(t, "ready")
	next, err := Adopt(id)
	require.NoError(t, err)
	assert.Equal(t, id, next.Identity())
	v.tell(t, "compare", 4)
	v.says(t, "ok")
	sid, err := unix.Getsid(id.PID)
	require.NoError(t, err)
	assert.Equal(t, id.PID, sid, "a session of its own")
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", id.PID))
	require.NoError(t, err)
	assert.NotContains(t, string(environ), playAgent, "the agent's environment")
	v.quit(t)
	awaitEnd(t, next)
	log, err := os.ReadFile(r.dir + "/pager.log")
	require.NoError(t, err)
	assert.Contains(t, string(log), "vmm ended")
	_, err = Adopt(id)
	require.ErrorIs(t, err, ErrGone)
	id.PID = os.Getpid()
	_, err = Adopt(id)
	require.ErrorIs(t, err, ErrGone, "a pid that is another's now")
}

func TestS10_AVMMWhoseServerWasKilledIsKilled(t *testing.T) {
	files := openFiles(t)
	r := newRig(t, 2000)
	p, err := Start(t.Context(), r.startConfig())
	require.NoError(t, err)
	v := r.startVMM(t, play{})
	v.says(t, "ready")
	v.tell(t, "first", 10)
	v.says(t, "ok")
	require.NoError(t, unix.Kill(p.Identity().PID, unix.SIGKILL))
	awaitEnd(t, p)
	v.tell(t, "compare", 4)
	select {
	case line := <-v.out:
		require.FailNow(t, "without a server there should be no pages", line)
	case <-v.done:
		require.FailNow(t, "the vmm ended by itself")
	case <-time.After(300 * time.Millisecond): // it hangs, which is what the guard is for
	}
	ended := errors.New("kill was called")
	err = p.Guard(t.Context(), v.done, func(ctx context.Context) error {
		return errors.Join(ended, ctx.Err(), v.cmd.Process.Kill())
	})
	require.ErrorIs(t, err, ErrUnserved)
	require.ErrorIs(t, err, ended)
	v.killed(t)
	assert.Equal(t, files, openFiles(t))
}

func TestS10_AGuardedVMMThatEndsIsNoFailure(t *testing.T) {
	r := newRig(t, 200)
	p, err := Start(t.Context(), r.startConfig())
	require.NoError(t, err)
	v := r.startVMM(t, play{})
	v.says(t, "ready")
	kill := func(context.Context) error { t.Error("kill was called"); return nil }
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.Guard(over, v.done, kill), context.Canceled)
	v.quit(t)
	require.NoError(t, p.Guard(t.Context(), v.done, kill))
	awaitEnd(t, p)
	require.NoError(t, p.Guard(t.Context(), v.done, kill), "both are gone, whoever went first")
	require.NoError(t, p.Kill(t.Context()), "it is gone already")
}

func TestS10_AServerThatEndsAMomentBeforeItsVMMIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Process{done: make(chan struct{})}
		close(p.done)
		vmm := make(chan struct{})
		go func() {
			time.Sleep(grace / 2)
			close(vmm)
		}()
		require.NoError(t, p.Guard(t.Context(), vmm, func(context.Context) error { t.Error("kill was called"); return nil }))
	})
}

func TestS10_AServerThatIsToldToStopEndsItsVMM(t *testing.T) {
	r := newRig(t, 200)
	p, err := Start(t.Context(), r.startConfig())
	require.NoError(t, err)
	v := r.startVMM(t, play{})
	v.says(t, "ready")
	for _, harmless := range []unix.Signal{unix.SIGINT, unix.SIGHUP} {
		require.NoError(t, unix.Kill(p.Identity().PID, harmless))
	}
	v.tell(t, "first", 10)
	v.says(t, "ok")
	require.NoError(t, unix.Kill(p.Identity().PID, unix.SIGTERM))
	v.killed(t)
	awaitEnd(t, p)
}

func TestS10_AServerThatCannotStartSaysWhy(t *testing.T) {
	files := openFiles(t)
	r := newRig(t, 100)
	require.NoError(t, os.Truncate(r.layers[1]+memfile.HeaderSuffix, 50))
	_, err := Start(t.Context(), r.startConfig())
	require.ErrorContains(t, err, r.layers[1]+memfile.HeaderSuffix)
	cfg := r.startConfig()
	cfg.Binary = r.dir + "/no"
	_, err = Start(t.Context(), cfg)
	require.ErrorIs(t, err, os.ErrNotExist)
	cfg = r.startConfig()
	cfg.Binary = "/bin/sleep"
	cfg.ReadyTimeout = 50 * time.Millisecond
	_, err = Start(t.Context(), cfg)
	require.Error(t, err)
	// Released ones live on.
	r = newRig(t, 100)
	p, err := Start(t.Context(), r.startConfig())
	require.NoError(t, err)
	p.Release()
	require.ErrorContains(t, p.Guard(t.Context(), nil, nil), "released")
	again, err := Adopt(p.Identity())
	require.NoError(t, err)
	require.NoError(t, again.Kill(t.Context()))
	_ = p.child.Wait() // an agent that goes down leaves this to init
	assert.Equal(t, files, openFiles(t))
}

func TestArgsAreWhatTheCommandTakes(t *testing.T) {
	cfg := Config{Socket: "/s", Layers: []string{"/a,b", "/c"}, Batch: 8192, Workers: 3, WorkingSet: "/w", RecordFor: time.Second, AcceptTimeout: 2 * time.Second}
	cmd := Command()
	require.NoError(t, cmd.ParseFlags(cfg.Args()))
	for name, want := range map[string]string{"socket": "/s", "layer": "[\"/a,b\",/c]", "batch": "8192", "workers": "3",
		"working-set": "/w", "record-for": "1s", "accept-timeout": "2s"} {
		assert.Equal(t, want, cmd.Flags().Lookup(name).Value.String(), name)
	}
	assert.Len(t, cfg.Args(), 16)
	assert.True(t, cmd.Hidden)
	assert.False(t, strings.Contains(cmd.Name(), " "))
}
