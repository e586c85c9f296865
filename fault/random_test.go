//go:build fault

package fault

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/envdclient"
)

const cont = syscall.SIGCONT

// The environment of the random suite: the seed (printed; a new one by default) and the number of kills.
const (
	seedEnv       = "WRENN_FAULT_SEED"
	roundsEnv     = "WRENN_FAULT_ROUNDS"
	defaultRounds = 20
)

// workers is how many sandboxes come and go at a time, and lifetime how long an agent lives at most between
// two kills.
const (
	workers  = 4
	lifetime = time.Second
)

// TestF02_RandomKillsOverARunningWorkload kills the agent at any moment while sandboxes are made, used and
// destroyed. What was acknowledged holds: a sandbox that was made runs and answers, one that was destroyed
// is gone. Of the others each either runs or is gone without a trace.
func TestF02_RandomKillsOverARunningWorkload(t *testing.T) {
	seed := number(t, seedEnv, int(time.Now().UnixNano()%1e9))
	rounds := number(t, roundsEnv, defaultRounds)
	t.Logf("%s=%d %s=%d", seedEnv, seed, roundsEnv, rounds)
	r := newRig(t, "random")
	defer r.end()
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	var total load
	for round := range rounds {
		l := &load{r: r, client: r.client, boxes: map[string]fate{}}
		ctx, stop := context.WithCancel(t.Context())
		var working sync.WaitGroup
		for i := range workers {
			random := rand.New(rand.NewPCG(uint64(seed), uint64(1+round*workers+i)))
			working.Go(func() { l.work(ctx, random, fmt.Sprintf("r%dw%d", round, i)) })
		}
		time.Sleep(time.Duration(rng.Int64N(int64(lifetime))))
		r.agent.Kill()
		stop()
		working.Wait()
		r.start()
		l.verify(round)
		total.creates, total.execs, total.destroys = total.creates+l.creates, total.execs+l.execs, total.destroys+l.destroys
		if t.Failed() {
			t.Fatalf("round %d of seed %d; the agent's log:\n%s", round, seed, r.agent.Log())
		}
	}
	t.Logf("%d kills over %d creates, %d execs, %d destroys", rounds, total.creates, total.execs, total.destroys)
	r.restart()
	r.clean(r.neighbour.ID)
	r.host.Same(r.base)
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, name)
	return n
}

// fate is what the workload knows of a sandbox.
type fate int

const (
	asked     fate = iota // of a create that was not acknowledged
	made                  // acknowledged
	condemned             // its destroy was not acknowledged
	gone                  // acknowledged
)

// load is the workload of one life of the agent.
type load struct {
	r      *rig
	client *agentclient.Client

	mu                       sync.Mutex
	boxes                    map[string]fate
	creates, execs, destroys int
}

func (l *load) set(id string, f fate, count *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.boxes[id] = f
	if count != nil {
		*count++
	}
}

// work makes, uses and destroys sandboxes until the agent is dead. One in three is left alone, so that there
// are some to be taken over.
func (l *load) work(ctx context.Context, random *rand.Rand, name string) {
	for i := 0; ctx.Err() == nil; i++ {
		id := fmt.Sprintf("%sn%d", name, i)
		l.set(id, asked, nil)
		box, err := l.client.Create(ctx, agentclient.CreateRequest{ID: id, Template: "base", Timeout: time.Hour})
		if err != nil {
			return
		}
		l.set(id, made, &l.creates)
		if out, err := l.r.exec(ctx, box, "/usr/bin/envd", "-version"); ctx.Err() == nil {
			assert.NoError(l.r.t, err, "exec in %s", id)
			assert.NotEmpty(l.r.t, out)
			l.set(id, made, &l.execs)
		}
		if random.IntN(3) == 0 {
			return
		}
		l.set(id, condemned, nil)
		if l.client.Destroy(ctx, id) != nil {
			return
		}
		l.set(id, gone, &l.destroys)
	}
}

// verify looks at what the next life of the agent has made of the sandboxes, and ends those that run.
func (l *load) verify(round int) {
	t := l.r.t
	var alive []string
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		living, err := l.r.living()
		require.NoError(t, err)
		alive = alive[:0]
		for id := range living {
			alive = append(alive, id)
		}
		require.Empty(t, leftovers(l.r.empty, l.r.host.Take(), living), "left on the host")
	}, patience, 20*time.Millisecond, "round %d", round)
	living, err := l.r.living()
	require.NoError(t, err)
	require.Contains(t, living, l.r.neighbour.ID)
	for id, f := range l.boxes {
		box, there := living[id]
		switch f {
		case made:
			if assert.True(t, there, "sandbox %s was acknowledged and is lost", id) {
				l.r.answers(box)
			}
		case gone:
			assert.False(t, there, "sandbox %s was destroyed and is back", id)
		case asked, condemned: // the answer was lost, with or without the act
		}
	}
	for _, id := range alive {
		if id != l.r.neighbour.ID {
			require.NoError(t, l.r.tryDestroy(id))
		}
	}
	l.r.clean(l.r.neighbour.ID)
}

// exec runs a program in a sandbox.
func (r *rig) exec(ctx context.Context, box agentclient.Sandbox, cmd string, args ...string) (string, error) {
	conns := r.transport()
	defer conns.CloseIdleConnections()
	guest, err := envdclient.New(envdclient.Config{BaseURL: "http://" + address(box), HTTPClient: &http.Client{Transport: conns}})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var out bytes.Buffer
	exit, err := guest.Exec(ctx, envdclient.ExecRequest{Cmd: cmd, Args: args, Stdout: &out})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%s: %s", cmd, exit.Status)
	}
	return out.String(), err
}
