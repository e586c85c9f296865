package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
)

// Plan is a load that a process of its own makes (bench/actor): a user's browser and a user's terminal are not one
// program, and an echo should not wait for what reads 200 MB/s in its own process.
type Plan struct {
	Kind Kind `json:"kind"`
	// URL, Host and Header are HTTP1's.
	URL    string      `json:"url"`
	Host   string      `json:"host,omitempty"`
	Header http.Header `json:"header,omitempty"`
}

// Plan is the load of one kind through this door, for another process.
func (d HTTP1) Plan(kind Kind) Plan {
	return Plan{Kind: kind, URL: d.URL.String(), Host: d.Host, Header: d.Header}
}

// Tally is what a load has done so far.
type Tally struct {
	Bytes int64 `json:"bytes"`
	Calls int64 `json:"calls"`
	// Error is the first failure of a part, which ended that part; empty for none.
	Error string `json:"error,omitempty"`
}

// Tally is what the load has done so far.
func (l *Load) Tally() Tally {
	t := Tally{Bytes: l.Bytes(), Calls: l.Calls()}
	if err := l.Err(); err != nil {
		t.Error = err.Error()
	}
	return t
}

// Serve makes the load of the plan that is the first line of in, over connections of transport. It prints a Tally once
// all parts have begun and for each line after it, and ends the load at the end of in.
func Serve(ctx context.Context, transport http.RoundTripper, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return errors.Join(errors.New("no plan"), lines.Err())
	}
	var p Plan
	if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
		return err
	}
	at, err := url.Parse(p.URL)
	if err != nil {
		return err
	}
	l, err := Start(ctx, HTTP1{Transport: transport, URL: at, Host: p.Host, Header: p.Header}, p.Kind)
	if err != nil {
		return err
	}
	defer l.Stop()
	for answers := json.NewEncoder(out); ; {
		if err := answers.Encode(l.Tally()); err != nil {
			return err
		}
		if !lines.Scan() {
			return lines.Err()
		}
	}
}
