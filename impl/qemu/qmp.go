package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// qmpTimeout bounds one QMP command. Those used here answer in milliseconds; on a loaded machine that is
// itself emulated, the first has been seen to take over 5 s.
const qmpTimeout = 20 * time.Second

var errQMPClosed = errors.New("qemu has closed its control connection")

// qmp is QEMU's control connection. Commands may be sent concurrently; answers are matched by id.
type qmp struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)
	done    chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	next    int
	waiting map[int]chan qmpReply
	closed  bool
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    *int            `json:"id"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// newQMP greets QEMU on conn, which it owns, and starts the reader. onEvent runs on the reader's
// goroutine and must not send commands. greeting bounds the wait for a QEMU that is still starting.
func newQMP(conn net.Conn, greeting time.Duration, onEvent func(string, json.RawMessage)) (*qmp, error) {
	q := &qmp{conn: conn, onEvent: onEvent, done: make(chan struct{}), waiting: map[int]chan qmpReply{}}
	lines := bufio.NewReader(conn)
	if err := conn.SetReadDeadline(time.Now().Add(greeting)); err != nil {
		return nil, errors.Join(fmt.Errorf("await qemu: %w", err), conn.Close())
	}
	if _, err := lines.ReadBytes('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("await qemu's greeting: %w", err), conn.Close())
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("await qemu: %w", err), conn.Close())
	}
	go q.read(lines)
	if err := q.do("qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// close ends the connection and waits for the reader.
func (q *qmp) close() {
	_ = q.conn.Close() // the reader sees it and ends
	<-q.done
}

// do sends a command, waits for its answer and decodes it into out, if out is not nil.
func (q *qmp) do(command string, args, out any) error {
	reply, id, err := q.register()
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	defer q.forget(id)
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, args, id}
	raw, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode qmp %s: %w", command, err)
	}
	err = q.conn.SetWriteDeadline(time.Now().Add(qmpTimeout))
	if err == nil {
		_, err = q.conn.Write(append(raw, '\n'))
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("qmp %s: %w", command, err)
	case err != nil: // a connection breaks for no other reason
		return fmt.Errorf("qmp %s: %w: %w", command, errQMPClosed, err)
	}
	limit := time.NewTimer(qmpTimeout)
	defer limit.Stop()
	select {
	case r, ok := <-reply:
		return r.into(command, ok, out)
	case <-limit.C:
		return fmt.Errorf("qmp %s: no answer within %s", command, qmpTimeout)
	}
}

func (r qmpReply) into(command string, ok bool, out any) error {
	switch {
	case !ok:
		return fmt.Errorf("qmp %s: %w", command, errQMPClosed)
	case r.Error != nil:
		return fmt.Errorf("qmp %s: %s: %s", command, r.Error.Class, r.Error.Desc)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(r.Return, out); err != nil {
		return fmt.Errorf("decode answer of qmp %s: %w", command, err)
	}
	return nil
}

func (q *qmp) register() (<-chan qmpReply, int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, 0, errQMPClosed
	}
	q.next++
	reply := make(chan qmpReply, 1)
	q.waiting[q.next] = reply
	return reply, q.next, nil
}

func (q *qmp) forget(id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.waiting, id)
}

func (q *qmp) read(lines *bufio.Reader) {
	defer close(q.done)
	defer q.abandon()
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var r qmpReply
		if json.Unmarshal(line, &r) != nil {
			continue
		}
		if r.Event != "" {
			q.onEvent(r.Event, r.Data)
			continue
		}
		if r.ID == nil {
			continue
		}
		q.mu.Lock()
		if reply, ok := q.waiting[*r.ID]; ok {
			delete(q.waiting, *r.ID)
			reply <- r
		}
		q.mu.Unlock()
	}
}

// abandon tells everyone who still waits that no answer will come.
func (q *qmp) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for id, reply := range q.waiting {
		close(reply)
		delete(q.waiting, id)
	}
}
