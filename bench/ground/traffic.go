package ground

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"wrenn/bench/load"
)

// Traffic is a load under way.
type Traffic interface {
	// Tally is what it has done so far.
	Tally() (load.Tally, error)
	// Stop ends it and waits until it has ended.
	Stop()
}

// Start starts a kind of load beside the client's terminals and returns once all its parts have begun. It runs in a
// process of its own, save where the design has terminals and ports share a connection.
func (c *Client) Start(ctx context.Context, kind load.Kind) (Traffic, error) {
	if door, ok := c.Door.(load.HTTP1); ok && kind != load.None {
		return c.apart(door.Plan(kind))
	}
	l, err := load.Start(ctx, c.Door, kind)
	return beside{l}, err
}

// beside is a load in this process.
type beside struct{ *load.Load }

func (b beside) Tally() (load.Tally, error) { return b.Load.Tally(), nil }

// apart is a load in a process of its own.
type apart struct {
	program
	answers *json.Decoder
}

func (c *Client) apart(plan load.Plan) (Traffic, error) {
	p, err := startProgram(c.link, c.ground.command(c.ground.program, "load"))
	if err != nil {
		return nil, err
	}
	t := &apart{p, json.NewDecoder(p)}
	if err = json.NewEncoder(p).Encode(plan); err == nil {
		_, err = t.next()
	}
	if err != nil {
		t.Stop()
		return nil, fmt.Errorf("load %s: %w", plan.Kind, err)
	}
	return t, nil
}

// next reads a tally. A process that is starved by its own load may take some seconds.
func (t *apart) next() (load.Tally, error) {
	slow := time.AfterFunc(wait, func() { _ = t.cmd.Process.Kill() })
	defer slow.Stop()
	var tally load.Tally
	err := t.answers.Decode(&tally)
	if errors.Is(err, io.EOF) {
		err = errors.New("its process has ended")
	}
	return tally, err
}

func (t *apart) Tally() (load.Tally, error) {
	if _, err := io.WriteString(t, "\n"); err != nil {
		return load.Tally{}, err
	}
	return t.next()
}

func (t *apart) Stop() {
	_ = t.WriteCloser.Close() // ends it; so does the signal, should it be stuck
	stuck := time.AfterFunc(wait, func() { _ = t.cmd.Process.Kill() })
	defer stuck.Stop()
	_ = t.cmd.Wait() // what it had to say is on stderr
}
