package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const greeting = `{"QMP": {"version": {}, "capabilities": []}}` + "\n"

// peer plays QEMU on one end of a pipe: for each command it sends what answer returns, with %d replaced
// by the command's id. An empty answer is none; "hang up" closes.
func peer(t *testing.T, conn net.Conn, answer func(command string) string) {
	t.Helper()
	go func() {
		defer conn.Close()
		if _, err := conn.Write([]byte(greeting)); err != nil {
			return
		}
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var c struct {
				Execute string `json:"execute"`
				ID      int    `json:"id"`
			}
			if !assert.NoError(t, json.Unmarshal(lines.Bytes(), &c)) {
				return
			}
			reply := `{"return":{},"id":%d}`
			if c.Execute != "qmp_capabilities" {
				reply = answer(c.Execute)
			}
			if reply == "hang up" {
				return
			}
			if reply == "" {
				continue
			}
			if _, err := fmt.Fprintf(conn, reply+"\n", c.ID); err != nil {
				return
			}
		}
	}()
}

func dialPeer(t *testing.T, answer func(command string) string, onEvent func(string, json.RawMessage)) *qmp {
	t.Helper()
	ours, theirs := net.Pipe()
	peer(t, theirs, answer)
	q, err := newQMP(ours, patience, onEvent)
	require.NoError(t, err)
	t.Cleanup(q.close)
	return q
}

func TestQMPAnswers(t *testing.T) {
	var mu sync.Mutex
	var events []string
	q := dialPeer(t, func(command string) string {
		switch command {
		case "fail":
			return `{"error":{"class":"GenericError","desc":"no such thing"},"id":%d}`
		case "noise":
			return "not json\n[]\n" + `{"return":1,"id":999}` + "\n" + `{"event":"STOP","data":{}}` + "\n" + `{"return":{"status":"paused"},"id":%d}`
		case "odd":
			return `{"return":7,"id":%d}`
		}
		return `{"return":{},"id":%d}`
	}, func(name string, _ json.RawMessage) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, name)
	})
	require.NoError(t, q.do("stop", nil, nil))
	require.ErrorContains(t, q.do("fail", object{"x": 1}, nil), "qmp fail: GenericError: no such thing")
	var status struct {
		Status string `json:"status"`
	}
	require.NoError(t, q.do("noise", nil, &status))
	assert.Equal(t, "paused", status.Status)
	mu.Lock()
	assert.Equal(t, []string{"STOP"}, events)
	mu.Unlock()
	require.ErrorContains(t, q.do("odd", nil, &status), "decode answer of qmp odd")
}

func TestQMPHangUpEndsEveryWait(t *testing.T) {
	q := dialPeer(t, func(command string) string {
		if command == "die" {
			return "hang up"
		}
		return ""
	}, nil)
	var waits sync.WaitGroup
	for range 5 {
		waits.Go(func() { assert.ErrorIs(t, q.do("wait", nil, nil), errQMPClosed) })
	}
	require.Eventually(t, func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.waiting) == 5
	}, patience, time.Millisecond)
	require.ErrorIs(t, q.do("die", nil, nil), errQMPClosed)
	waits.Wait()
	require.ErrorIs(t, q.do("more", nil, nil), errQMPClosed)
}

func TestQMPDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := dialPeer(t, func(string) string { return "" }, nil)
		begin := time.Now()
		require.ErrorContains(t, q.do("stop", nil, nil), "no answer within 20s")
		assert.Equal(t, qmpTimeout, time.Since(begin))
		assert.Empty(t, q.waiting)
		q.close()
	})
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		_, err := newQMP(ours, time.Minute, nil)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}
