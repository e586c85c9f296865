//go:build fault

package fault

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"wrenn/impl/agentclient"
	"wrenn/impl/transport"
)

// traffic is an exchange with a guest, over one connection straight to its address, every talkEvery for as
// long as the test runs.
type traffic struct {
	dials, exchanges atomic.Int64
	cancel           context.CancelFunc
	ended            chan struct{}

	mu    sync.Mutex
	worst time.Duration // of the exchanges since the last look
	err   error         // the first
}

const (
	talkEvery = 10 * time.Millisecond
	// talkLimit is far beyond what an exchange takes even on a machine whose cores are all busy.
	talkLimit = 10 * time.Second
)

// talkTo talks to a sandbox until stop.
func (r *rig) talkTo(box agentclient.Sandbox) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{cancel: cancel, ended: make(chan struct{})}
	conns := r.transport()
	dial := conns.DialContext
	conns.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		tr.dials.Add(1)
		return dial(ctx, network, addr)
	}
	go func() {
		defer close(tr.ended)
		defer conns.CloseIdleConnections()
		tick := time.NewTicker(talkEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				begin := time.Now()
				err := tr.exchange(conns, "http://"+address(box)+"/health")
				tr.note(time.Since(begin), err)
			}
		}
	}()
	return tr
}

// stop asserts that nothing was lost: every request was answered, on the connection of the first one.
func (tr *traffic) stop(t *testing.T) {
	tr.cancel()
	<-tr.ended
	tr.check(t)
	t.Logf("%d exchanges with the neighbour over %d connection(s)", tr.exchanges.Load(), tr.dials.Load())
}

func (tr *traffic) exchange(conns *http.Transport, url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), talkLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := conns.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if closeErr := resp.Body.Close(); err == nil {
		err = closeErr
	}
	if err == nil && resp.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("the guest answers %s", resp.Status)
	}
	return err
}

func (tr *traffic) note(took time.Duration, err error) {
	tr.exchanges.Add(1)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.worst = max(tr.worst, took)
	if tr.err == nil && err != nil {
		tr.err = err
	}
}

// check asserts that nothing was lost so far and returns the slowest exchange since the last check.
func (tr *traffic) check(t assert.TestingT) time.Duration {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	assert.NoError(t, tr.err, "the neighbour's traffic was disturbed")
	assert.LessOrEqual(t, tr.dials.Load(), int64(1), "the neighbour's connection was reset")
	worst := tr.worst
	tr.worst = 0
	return worst
}

// transport connects from the host.
func (r *rig) transport() *http.Transport {
	t := transport.NewStreamTransport()
	t.DialContext = r.host.DialContext
	return t
}
