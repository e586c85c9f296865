package envdclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// InitRequest is what the host tells a guest. A nil pointer or map leaves that setting as it is.
type InitRequest struct {
	// Timestamp sets the guest's clock where it differs; of two requests the newer one wins. Zero means
	// the moment of sending.
	Timestamp   time.Time
	AccessToken *string // asked for from then on; empty: none
	DefaultUser *string
	Workdir     *string           // where relative paths and programs start; empty: the user's home
	Env         map[string]string // replaces the environment of every program started later

	// Resumed is for a guest that was stopped or restored from a snapshot: its clock is set however little it
	// differs, and all connections but this one are cut. Entropy (at most 512 bytes), Hostname and MachineID
	// (32 hexadecimal digits) replace what it shares with its snapshot; empty leaves them.
	Resumed   bool
	Entropy   []byte
	Hostname  string
	MachineID string

	// Thaw lets frozen processes go on once all this is done, if the daemon can tell that the clock is right (to
	// 200 ms); see InitResult.Thawed.
	Thaw bool
	// Ready, if set, is waited for when the daemon listens to the request, and before it is told anything of it.
	Ready func(context.Context) error
}

// InitResult is what the daemon answers.
type InitResult struct {
	Version string // of E2B's daemon, whose features it has
	Thawed  bool   // the processes go on
	Boot    BootTimes
}

// BootTimes are moments of a guest's start on its own clock, from its kernel's start. Zero where the
// daemon did not say.
type BootTimes struct {
	Init time.Duration // its first program started
	Envd time.Duration // the daemon listened
	Now  time.Duration // the daemon answered
}

// Init tells the guest its settings.
func (c *Client) Init(ctx context.Context, r InitRequest) (InitResult, error) {
	h := http.Header{"Content-Type": {"application/json"}}
	if r.Thaw || r.Ready != nil {
		h.Set("Expect", "100-continue")
	}
	body := &initContent{ctx: ctx, request: r}
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got100Continue: func() { body.asked.Store(true) }})
	res, err := c.plain(traced, http.MethodPost, "/init", h, body)
	if err != nil {
		return InitResult{}, fmt.Errorf("init envd: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	return InitResult{
		Version: res.Header.Get("X-Envd-Version"), Thawed: res.Header.Get("X-Wrenn-Thawed") != "",
		Boot: bootTimesOf(res.Header.Get("X-Wrenn-Boot")),
	}, nil
}

const (
	// firstTry is how long the first request to a guest that may not be there yet waits for a connection: a
	// dial to an address without a host behind it hangs, a guest that is up takes a few milliseconds, and one that
	// was just restored up to 100 under emulation.
	firstTry = 150 * time.Millisecond
	// lastTry is what that grows to, doubling, for guests that are up but slow.
	lastTry = 2 * time.Second
	// answerTry is how long a request that has its connection waits for the answer. A guest that has just been
	// restored takes 100 to 200 ms for it under emulation, where a second request only adds to its work and
	// cuts the first; a daemon that is silent for ten seconds has lost it.
	answerTry = 10 * time.Second
)

// InitWhenReady calls Init again and again until the daemon answers or ctx ends. An answer that is an
// error (wrong token, bad settings) ends it too.
func (c *Client) InitWhenReady(ctx context.Context, r InitRequest) (InitResult, error) {
	for wait := firstTry; ; wait = min(2*wait, lastTry) {
		res, err := c.tryInit(ctx, r, wait)
		var answered *Error
		if err == nil || errors.As(err, &answered) && answered.Status < http.StatusInternalServerError {
			return res, err
		}
		select {
		case <-ctx.Done():
			return InitResult{}, fmt.Errorf("wait for envd: %w (last: %w)", ctx.Err(), err)
		case <-time.After(betweenTries):
		}
	}
}

// tryInit is Init with so much patience for a connection and answerTry for the answer.
func (c *Client) tryInit(ctx context.Context, r InitRequest, wait time.Duration) (InitResult, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(wait, func() { cancel(context.DeadlineExceeded) })
	defer patience.Stop()
	if ready := r.Ready; ready != nil {
		r.Ready = func(ctx context.Context) error {
			patience.Stop()
			defer patience.Reset(answerTry)
			return ready(ctx)
		}
	}
	return c.Init(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { patience.Reset(answerTry) },
	}), r)
}

type initJSON struct {
	Timestamp      time.Time         `json:"timestamp"`
	EnvVars        map[string]string `json:"envVars,omitzero"`
	AccessToken    *string           `json:"accessToken,omitempty"`
	DefaultUser    *string           `json:"defaultUser,omitempty"`
	DefaultWorkdir *string           `json:"defaultWorkdir,omitempty"`
	Resumed        bool              `json:"wrennResumed,omitempty"`
	Entropy        []byte            `json:"wrennEntropy,omitempty"`
	Hostname       string            `json:"wrennHostname,omitempty"`
	MachineID      string            `json:"wrennMachineID,omitempty"`
	Thaw           bool              `json:"wrennThaw,omitempty"`
}

// initContent is what an Init sends. It is made at the last moment, since its timestamp sets a clock: for a guest that
// has just been restored when the daemon asks for it ("100 Continue"), by when it is awake.
type initContent struct {
	ctx     context.Context //nolint:containedctx // it is the request's, which reads this
	request InitRequest
	asked   atomic.Bool
	made    *bytes.Reader
}

func (c *initContent) Read(p []byte) (int, error) {
	if c.made == nil {
		data, err := c.make()
		if err != nil {
			return 0, err
		}
		c.made = bytes.NewReader(data)
	}
	return c.made.Read(p)
}

func (c *initContent) make() ([]byte, error) {
	r := c.request
	if r.Ready != nil {
		if err := r.Ready(c.ctx); err != nil {
			return nil, err
		}
	}
	fresh := r.Timestamp.IsZero() && c.asked.Load() // else nobody could say how old the timestamp is
	if r.Timestamp.IsZero() {
		r.Timestamp = time.Now()
	}
	return json.Marshal(initJSON{
		Timestamp: r.Timestamp, EnvVars: r.Env, AccessToken: r.AccessToken,
		DefaultUser: r.DefaultUser, DefaultWorkdir: r.Workdir,
		Resumed: r.Resumed, Entropy: r.Entropy, Hostname: r.Hostname, MachineID: r.MachineID,
		Thaw: r.Thaw && fresh,
	})
}

// bootTimesOf reads "init=1.5;envd=1.9;now=2.0", in seconds; what it does not understand stays zero.
func bootTimesOf(header string) BootTimes {
	var b BootTimes
	for part := range strings.SplitSeq(header, ";") {
		name, value, _ := strings.Cut(part, "=")
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil || !(seconds >= 0 && seconds < 1e9) {
			continue
		}
		at := time.Duration(seconds * float64(time.Second))
		switch name {
		case "init":
			b.Init = at
		case "envd":
			b.Envd = at
		case "now":
			b.Now = at
		}
	}
	return b
}
