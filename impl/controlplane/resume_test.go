package controlplane

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/portproxy"
	"wrenn/impl/store"
)

// trafficServer returns a server beside p's, on the same store and agent, whose door asks to resume.
func trafficServer(t *testing.T, p *plane, a *standIn) resumer {
	t.Helper()
	st, err := store.Open(t.Context(), p.database)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, st.Close()) })
	agent, err := agentclient.New(a.config("one"))
	require.NoError(t, err)
	t.Cleanup(agent.Close)
	return resumer{&server{cfg: Config{Logger: p.logger()}, store: st, agents: []*agentclient.Client{agent}}}
}

var resumes = map[string]any{"enabled": true}

func TestP08_TrafficResumesWhatAskedForIt(t *testing.T) {
	p, a := startWithAgent(t)
	s := trafficServer(t, p, a)
	for timeout, want := range map[int]time.Duration{10: 300 * time.Second, 4000: 4000 * time.Second} {
		id := p.create(map[string]any{"timeout": timeout, "autoPause": true, "autoResume": resumes}).SandboxID
		require.NoError(t, s.Resume(t.Context(), id), "it runs")
		p.pause(id)
		require.NoError(t, s.Resume(t.Context(), id))
		assert.Equal(t, isRunning, a.state(id))
		detail := p.detail(id)
		assert.Equal(t, store.Running, detail.State)
		assert.InDelta(t, want, time.Until(detail.EndAt), float64(wait))
	}
}

func TestP08_TrafficResumesNothingElse(t *testing.T) {
	p, a := startWithAgent(t)
	s := trafficServer(t, p, a)
	asks := 0
	a.with(func() {
		a.before = func(call, _ string) error {
			if call == "resume" {
				asks++
			}
			return nil
		}
	})
	plain := p.create(map[string]any{"autoPause": true}).SandboxID
	p.pause(plain)
	files := p.create(map[string]any{"autoResume": resumes}).SandboxID
	require.Equal(t, http.StatusNoContent, p.do("POST", "/sandboxes/"+files+"/pause", `{"memory":false}`).code)
	killed := p.create(map[string]any{"autoResume": resumes}).SandboxID
	require.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+killed, nil).code)
	for _, id := range []string{plain, files, killed, "iunknown"} {
		require.ErrorIs(t, s.Resume(t.Context(), id), portproxy.ErrNotFound)
	}
	assert.Zero(t, asks)
	// Once it has its memory again, traffic may.
	require.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+files+"/connect", nil).code)
	p.pause(files)
	require.NoError(t, s.Resume(t.Context(), files))
}

// The store learns seconds later of what an agent does at a sandbox's end; requests do not wait for that.
func TestP08_TrafficResumesWhatItsAgentIsPausing(t *testing.T) {
	p, a := startWithAgent(t)
	s := trafficServer(t, p, a)
	id := p.create(map[string]any{"timeout": 1, "autoPause": true, "autoResume": resumes}).SandboxID
	assert.False(t, sleeps(p.rows()[0]))
	time.Sleep(1100 * time.Millisecond)
	assert.True(t, sleeps(p.rows()[0]))
	a.with(func() { a.sandboxes[id].State = isPausing })
	time.AfterFunc(100*time.Millisecond, func() { a.pausesByItself(id) })
	require.NoError(t, s.Resume(t.Context(), id))
	assert.Equal(t, isRunning, a.state(id))
	assert.Equal(t, store.Running, p.rows()[0].State)
	assert.False(t, sleeps(p.rows()[0]))
	assert.InDelta(t, minTrafficTimeout, time.Until(p.rows()[0].EndAt), float64(wait))
}

func TestP08_ManyRequestsResumeOnce(t *testing.T) {
	p, a := startWithAgent(t)
	s := trafficServer(t, p, a)
	id := p.create(map[string]any{"autoResume": resumes}).SandboxID
	p.pause(id)
	var asks atomic.Int32
	a.with(func() {
		a.before = func(call, _ string) error {
			if call == "resume" {
				asks.Add(1)
				time.Sleep(50 * time.Millisecond)
			}
			return nil
		}
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { assert.NoError(t, s.Resume(t.Context(), id)) })
	}
	wg.Wait()
	assert.EqualValues(t, 1, asks.Load())
}

func TestP08_WhatTrafficIsToldOfAFailedResume(t *testing.T) {
	p, a := startWithAgent(t)
	s := trafficServer(t, p, a)
	id := p.create(map[string]any{"autoResume": resumes}).SandboxID
	p.pause(id)
	a.fail("resume", connect.NewError(connect.CodeInternal, errors.New("torn")))
	require.ErrorIs(t, s.Resume(t.Context(), id), agentclient.ErrInternal)
	a.fail("resume", connect.NewError(connect.CodeFailedPrecondition, errors.New("busy")))
	require.ErrorIs(t, s.Resume(t.Context(), id), portproxy.ErrTransition)
	a.with(func() { a.before = func(string, string) error { return lost() } })
	require.ErrorIs(t, s.Resume(t.Context(), id), portproxy.ErrUnreachable)
	assert.Equal(t, store.Paused, p.rows()[0].State)

	// Whoever asked is told in time; the resume goes on.
	slow := make(chan struct{})
	a.with(func() {
		a.before = func(call, _ string) error {
			if call == "resume" {
				<-slow
			}
			return nil
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Resume(ctx, id), context.DeadlineExceeded)
	close(slow)
	eventually(t, "the resume has come to its end", func() bool { return p.rows()[0].State == store.Running })
}

func TestTurnsAreTakenOneAfterTheOther(t *testing.T) {
	var all turns
	first, err := all.take(t.Context(), "a")
	require.NoError(t, err)
	other, err := all.take(t.Context(), "b")
	require.NoError(t, err, "another sandbox's does not wait")
	other()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = all.take(ctx, "a")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	first()
	second, err := all.take(t.Context(), "a")
	require.NoError(t, err)
	second()
	assert.Empty(t, all.taken, "nothing is kept of what nobody waits for")
}

// TestP08_TrafficThroughTheDoorWakes: the door is told that a sandbox sleeps, and by whom it is woken.
func TestP08_TrafficThroughTheDoorWakes(t *testing.T) {
	p, a := startWithAgent(t)
	ask := func(id string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.proxy+"/", nil)
		require.NoError(t, err)
		req.Header.Set("E2b-Sandbox-Id", id)
		req.Header.Set("E2b-Sandbox-Port", "8080")
		res, err := p.client.Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode
	}
	id := p.create(map[string]any{"autoResume": resumes}).SandboxID
	awake := ask(id)
	require.NotEqual(t, http.StatusBadGateway, awake)
	p.pause(id)
	assert.Equal(t, awake, ask(id), "it was not woken")
	assert.Equal(t, isRunning, a.state(id))
	plain := p.create(nil).SandboxID
	p.pause(plain)
	assert.Equal(t, http.StatusBadGateway, ask(plain), "it did not ask for that")
}
