package controlplane

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// What is paused may be all that is left of somebody's work: one denial of its agent is not believed.
func TestOneDenialDoesNotForgetAPausedSandbox(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	p.pause(id)
	gone := a.sandboxes[id]
	a.with(func() { delete(a.sandboxes, id) })
	p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).refused(t, http.StatusNotFound)
	require.Len(t, p.rows(), 1)
	a.with(func() { a.sandboxes[id] = gone })
	assert.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
}

func TestAPauseThatFailsSaysWhyAndTheSandboxRunsOn(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	for code, want := range map[connect.Code]int{
		connect.CodeResourceExhausted: 503, connect.CodeInternal: 500, connect.CodeUnavailable: 503, connect.CodeUnimplemented: 501, connect.CodeFailedPrecondition: 409,
	} {
		a.fail("pause", connect.NewError(code, errors.New("no room for 512 MiB")))
		assert.Equal(t, "no room for 512 MiB", p.do("POST", "/sandboxes/"+id+"/pause", nil).refused(t, want))
		assert.Equal(t, store.Running, p.detail(id).State)
	}
	a.with(func() { a.before = nil })
	p.pause(id)
	for code, want := range map[connect.Code]int{connect.CodeResourceExhausted: 503, connect.CodeInternal: 500, connect.CodeUnimplemented: 501} {
		a.fail("resume", connect.NewError(code, errors.New("the memory is torn: memory.1")))
		assert.Equal(t, "the memory is torn: memory.1", p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).refused(t, want))
		assert.Equal(t, store.Paused, p.detail(id).State)
	}
	a.with(func() { a.before = nil })
	assert.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
}

func TestLostRepliesOfPauseAndResumeAreLookedUp(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	a.with(func() { a.after = func(string, string) error { return lost() } })
	p.pause(id)
	assert.Equal(t, store.Paused, p.rows()[0].State)
	var sb sandboxReply
	p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).into(t, http.StatusCreated, &sb)
	assert.Equal(t, store.Running, p.rows()[0].State)
	assert.Equal(t, "restored", sb.Wrenn.BootPath)

	// The agent has not begun when the connection breaks: nothing has happened, and a repetition does it.
	a.with(func() {
		a.after, a.before = nil, func(call, _ string) error {
			if call == "pause" {
				a.with(func() { a.before = nil })
				return lost()
			}
			return nil
		}
	})
	p.do("POST", "/sandboxes/"+id+"/pause", nil).refused(t, http.StatusServiceUnavailable)
	p.do("POST", "/sandboxes/"+id+"/pause", nil)
	assert.Equal(t, isPaused, a.state(id))

	// The reply is lost and the agent does not answer afterwards: the repetition is told what has happened.
	require.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
	a.with(func() {
		a.after = func(string, string) error {
			a.with(func() { a.before = func(string, string) error { return lost() } })
			return lost()
		}
	})
	p.do("POST", "/sandboxes/"+id+"/pause", nil).refused(t, http.StatusServiceUnavailable)
	assert.Equal(t, store.Running, p.rows()[0].State, "nobody knows yet")
	a.with(func() { a.before, a.after = nil, nil })
	assert.Contains(t, p.do("POST", "/sandboxes/"+id+"/pause", nil).refused(t, http.StatusConflict), "paused already")
	assert.Equal(t, store.Paused, p.rows()[0].State)
	assert.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
}

func TestA06_ConnectWaitsForAPauseUnderWay(t *testing.T) {
	for name, begin := range map[string]func(*plane, *standIn, string){
		"by a request": func(p *plane, a *standIn, id string) {
			reached := make(chan struct{})
			a.with(func() {
				a.before = func(call, _ string) error {
					if call == "pause" {
						close(reached)
						time.Sleep(300 * time.Millisecond)
					}
					return nil
				}
			})
			go p.do("POST", "/sandboxes/"+id+"/pause", nil)
			<-reached
		},
		"by the agent": func(_ *plane, a *standIn, id string) {
			a.with(func() { a.sandboxes[id].State = isPausing })
			time.AfterFunc(300*time.Millisecond, func() { a.pausesByItself(id) })
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			p, a := startWithAgent(t)
			id := p.create(nil).SandboxID
			begin(p, a, id)
			assert.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
			assert.Equal(t, isRunning, a.state(id))
			assert.Equal(t, store.Running, p.detail(id).State)
		})
	}
}

func TestA06_OfTwoConnectsOneResumes(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	for range 5 {
		p.pause(id)
		a.with(func() {
			a.before = func(call, _ string) error {
				if call == "resume" {
					time.Sleep(20 * time.Millisecond)
				}
				return nil
			}
		})
		codes := make([]int, 4)
		var wg sync.WaitGroup
		for i := range codes {
			wg.Go(func() { codes[i] = p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code })
		}
		wg.Wait()
		assert.ElementsMatch(t, []int{200, 200, 200, 201}, codes)
	}
}

func TestA06_OfTwoPausesOneWins(t *testing.T) {
	p, _ := startWithAgent(t)
	id := p.create(nil).SandboxID
	codes := make([]int, 4)
	var wg sync.WaitGroup
	for i := range codes {
		wg.Go(func() { codes[i] = p.do("POST", "/sandboxes/"+id+"/pause", nil).code })
	}
	wg.Wait()
	assert.ElementsMatch(t, []int{204, 409, 409, 409}, codes)
}

func TestA06_AKillWinsOverAPauseAndAResume(t *testing.T) {
	for _, call := range []string{"pause", "resume"} {
		t.Run(call, func(t *testing.T) {
			p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 10 * time.Millisecond })
			id := p.create(nil).SandboxID
			path := "/sandboxes/" + id + "/pause"
			if call == "resume" {
				p.pause(id)
				path = "/v2/sandboxes/" + id + "/connect"
			}
			reached, killed := make(chan struct{}), make(chan struct{})
			a.with(func() {
				a.before = func(c, _ string) error {
					if c == call {
						close(reached)
						<-killed
					}
					return nil
				}
			})
			code := make(chan int)
			go func() { code <- p.do("POST", path, nil).code }()
			<-reached
			assert.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
			close(killed)
			assert.Contains(t, []int{404, 409}, <-code)
			eventually(t, "nothing is left", func() bool { return len(a.ids()) == 0 && len(p.rows()) == 0 })
			p.do("GET", "/sandboxes/"+id, nil).refused(t, http.StatusNotFound)
		})
	}
}

// The agent could not be told of the kill: the pause comes to its end, and does not take the kill back.
func TestA06_APauseDoesNotTakeAKillBack(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	reached, killed := make(chan struct{}), make(chan struct{})
	a.with(func() {
		a.before = func(call, _ string) error {
			switch call {
			case "pause":
				close(reached)
				<-killed
			case "destroy":
				return lost()
			}
			return nil
		}
	})
	code := make(chan int)
	go func() { code <- p.do("POST", "/sandboxes/"+id+"/pause", nil).code }()
	<-reached
	p.do("DELETE", "/sandboxes/"+id, nil).refused(t, http.StatusServiceUnavailable)
	close(killed)
	assert.Equal(t, http.StatusNotFound, <-code)
	assert.Equal(t, isPaused, a.state(id))
	assert.Equal(t, store.Destroying, p.rows()[0].State)
}

// An agent may rather refuse to destroy what it is just pausing: then the kill waits.
func TestA06_AKillWaitsForAnAgentThatIsBusy(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	a.with(func() {
		a.sandboxes[id].State = isPausing
		a.before = func(call, _ string) error {
			if call == "destroy" && a.state(id) == isPausing {
				return connect.NewError(connect.CodeFailedPrecondition, errors.New("it is being paused"))
			}
			return nil
		}
	})
	time.AfterFunc(200*time.Millisecond, func() { a.pausesByItself(id) })
	assert.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
	assert.Empty(t, a.ids())
	assert.Empty(t, p.rows())
}

func TestA06_PauseConnectAndKillAtRandomLeaveNothing(t *testing.T) {
	p, a := startWithAgent(t, func(c *Config) { c.ReconcileInterval = 3 * time.Millisecond })
	var wg sync.WaitGroup
	for range 4 {
		id := p.create(map[string]any{"autoPause": true}).SandboxID
		for range 3 {
			wg.Go(func() {
				for range 8 {
					assert.Contains(t, []int{204, 404, 409}, p.do("POST", "/sandboxes/"+id+"/pause", nil).code)
					assert.Contains(t, []int{200, 201, 404, 409}, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
				}
			})
		}
		wg.Go(func() {
			time.Sleep(30 * time.Millisecond)
			assert.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+id, nil).code)
		})
	}
	wg.Wait()
	eventually(t, "all are gone", func() bool { return len(a.ids()) == 0 && len(p.rows()) == 0 })
}

// A list that was taken before a request changed the sandbox is no news.
func TestAStaleObservationChangesNothing(t *testing.T) {
	p, a := startWithAgent(t)
	s := trafficServer(t, p, a)
	id := p.create(nil).SandboxID
	stale := p.rows()[0]
	p.pause(id)
	require.Equal(t, http.StatusCreated, p.do("POST", "/v2/sandboxes/"+id+"/connect", nil).code)
	fresh := p.rows()[0]
	got, err := s.adopt(t.Context(), stale, agentclient.Sandbox{ID: id, State: agentclient.StatePaused})
	require.NoError(t, err)
	assert.Equal(t, fresh, got)
	assert.Equal(t, fresh, p.rows()[0])
	got, err = s.adopt(t.Context(), fresh, agentclient.Sandbox{ID: id, State: agentclient.StatePaused})
	require.NoError(t, err)
	assert.Equal(t, store.Paused, got.State)
}
