//go:build fault

package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/agentclient"
	"wrenn/impl/transport"
)

// traffic is an exchange with a guest, over one connection straight to its address, every talkEvery for as
// long as the test runs.
type traffic struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu        sync.Mutex
	exchanges int
	worst     time.Duration // of the exchanges since the last look
	err       error         // which ended it
}

const (
	talkEvery = 10 * time.Millisecond
	// talkLimit is far beyond what an exchange takes even on a machine whose cores are all busy.
	talkLimit = 10 * time.Second
)

// talkTo talks to a sandbox until stop. It has a connection of its own and no HTTP client, since one may take
// a new connection for reasons of its own.
func (r *rig) talkTo(box agentclient.Sandbox) *traffic {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{cancel: cancel, ended: make(chan struct{})}
	conn, err := r.host.DialContext(ctx, "tcp", address(box))
	require.NoError(r.t, err)
	go func() {
		defer close(tr.ended)
		defer conn.Close()
		tick := time.NewTicker(talkEvery)
		defer tick.Stop()
		for reader := bufio.NewReader(conn); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			begin := time.Now()
			err := exchange(conn, reader)
			tr.note(time.Since(begin), err)
			if err != nil {
				return
			}
		}
	}()
	return tr
}

// stop asserts that nothing was lost: every request was answered.
func (tr *traffic) stop(t *testing.T) {
	tr.cancel()
	<-tr.ended
	tr.check(t)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	t.Logf("%d exchanges with the neighbour over one connection", tr.exchanges)
}

// exchange asks the daemon for its health.
func exchange(conn net.Conn, reader *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(talkLimit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: neighbour\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("the guest answers %s", resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}

func (tr *traffic) note(took time.Duration, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.exchanges++
	tr.worst, tr.err = max(tr.worst, took), err
}

// check asserts that nothing was lost so far and returns the slowest exchange since the last check.
func (tr *traffic) check(t assert.TestingT) time.Duration {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	assert.NoError(t, tr.err, "the neighbour's traffic was disturbed")
	worst := tr.worst
	tr.worst = 0
	return worst
}

// count is how many exchanges there were.
func (tr *traffic) count() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.exchanges
}

// answers asserts that the daemon of a sandbox is reached.
func (r *rig) answers(box agentclient.Sandbox) {
	r.t.Helper()
	conn, err := r.host.DialContext(r.t.Context(), "tcp", address(box))
	require.NoError(r.t, err, "sandbox %s on slot %d", box.ID, box.Slot)
	defer conn.Close()
	assert.NoError(r.t, exchange(conn, bufio.NewReader(conn)), "sandbox %s on slot %d", box.ID, box.Slot)
}

// transport connects from the host.
func (r *rig) transport() *http.Transport {
	t := transport.NewStreamTransport()
	t.DialContext = r.host.DialContext
	return t
}
