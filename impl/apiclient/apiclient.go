// Package apiclient is the Go client of the public REST API: what the command line, the test suites and
// other Go programs use. It speaks the same contract as E2B's SDKs (proto/openapi.yaml).
package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxReply bounds what is read of a reply in bytes: a list of 100 sandboxes, each with 64 KiB of
// metadata, fits.
const maxReply = 16 << 20

// Client calls one control plane. It is safe for concurrent use.
type Client struct {
	base string
	key  string
	http *http.Client
}

// New returns a client of the API at base ("http://127.0.0.1:3000") that authenticates with key.
func New(base, key string, transport http.RoundTripper) *Client {
	// The API never redirects, and the key must not follow somebody who does.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: base, key: key, http: &http.Client{Transport: transport, CheckRedirect: stay}}
}

// Error is a refusal by the control plane.
type Error struct {
	// Code is the HTTP status, which the body repeats.
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Error is the control plane's sentence with its code.
func (e *Error) Error() string { return fmt.Sprintf("%s (HTTP %d)", e.Message, e.Code) }

// IsNotFound reports whether err says that the sandbox does not exist.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == http.StatusNotFound
}

// CreateRequest is what Create asks for.
type CreateRequest struct {
	// TemplateID is a template's name or a snapshot's id.
	TemplateID string `json:"templateID"`
	// Timeout is in seconds; 0 takes the server's default of 300.
	Timeout             int               `json:"timeout,omitempty"`
	Metadata            map[string]string `json:"metadata,omitempty"`
	EnvVars             map[string]string `json:"envVars,omitempty"`
	AllowInternetAccess *bool             `json:"allow_internet_access,omitempty"`
	Network             *Network          `json:"network,omitempty"`
	Wrenn               *Limits           `json:"wrenn,omitempty"`
	// AutoPause pauses it at its end instead of killing it. AutoPauseMemory false keeps files alone then; nil
	// means true. It excludes AutoResume.
	AutoPause       bool        `json:"autoPause,omitempty"`
	AutoPauseMemory *bool       `json:"autoPauseMemory,omitempty"`
	AutoResume      *AutoResume `json:"autoResume,omitempty"`
}

// Sandbox is a sandbox as Create and Connect return it.
type Sandbox struct {
	SandboxID       string `json:"sandboxID"`
	TemplateID      string `json:"templateID"`
	EnvdVersion     string `json:"envdVersion"`
	EnvdAccessToken string `json:"envdAccessToken"`
	Domain          string `json:"domain"`
	Wrenn           *Boot  `json:"wrenn,omitempty"`
}

// Boot is how a sandbox came up and how long each part took.
type Boot struct {
	// BootPath is "cold", "restored" or "warm".
	BootPath string  `json:"bootPath"`
	Stages   []Stage `json:"stages"`
	TotalMs  float64 `json:"totalMs"`
}

// Stage is one part of a create (slot, journal, disk, network, vmm, kernel, init or envd) or of a pause, resume
// or snapshot.
type Stage struct {
	Name string  `json:"name"`
	Ms   float64 `json:"ms"`
}

// Detail is a sandbox as Get and List return it.
type Detail struct {
	SandboxID   string            `json:"sandboxID"`
	TemplateID  string            `json:"templateID"`
	State       string            `json:"state"`
	StartedAt   time.Time         `json:"startedAt"`
	EndAt       time.Time         `json:"endAt"`
	CPUCount    int               `json:"cpuCount"`
	MemoryMB    int               `json:"memoryMB"`
	DiskSizeMB  int               `json:"diskSizeMB"`
	Metadata    map[string]string `json:"metadata"`
	EnvdVersion string            `json:"envdVersion"`
	// AllowInternetAccess and Network are in the reply to Get alone.
	AllowInternetAccess *bool    `json:"allowInternetAccess,omitempty"`
	Network             *Network `json:"network,omitempty"`
	// Lifecycle is in the reply to Get alone.
	Lifecycle *Lifecycle `json:"lifecycle,omitempty"`
}

// Create makes a sandbox and returns when it is usable.
func (c *Client) Create(ctx context.Context, req CreateRequest) (Sandbox, error) {
	var s Sandbox
	_, err := c.do(ctx, http.MethodPost, "/v2/sandboxes", nil, req, &s)
	return s, err
}

// Connect returns a sandbox with its tokens, resumes it if it is paused, and extends its life to at least
// timeout seconds from now; 0 takes the server's default. A sandbox that was resumed has a Wrenn.
func (c *Client) Connect(ctx context.Context, id string, timeout int) (Sandbox, error) {
	return c.connect(ctx, id, timeout, false)
}

// Get returns one sandbox.
func (c *Client) Get(ctx context.Context, id string) (Detail, error) {
	var d Detail
	_, err := c.do(ctx, http.MethodGet, "/sandboxes/"+url.PathEscape(id), nil, nil, &d)
	return d, err
}

// List returns all sandboxes that have all pairs of metadata, newest first, through all pages.
func (c *Client) List(ctx context.Context, metadata map[string]string) ([]Detail, error) {
	query := url.Values{}
	if len(metadata) > 0 {
		pairs := url.Values{}
		for k, v := range metadata {
			pairs.Set(component(k), component(v))
		}
		query.Set("metadata", pairs.Encode())
	}
	all := []Detail{}
	for {
		var page []Detail
		header, err := c.do(ctx, http.MethodGet, "/v2/sandboxes", query, nil, &page)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		next := header.Get("X-Next-Token")
		if next == "" {
			return all, nil
		}
		query.Set("nextToken", next)
	}
}

// component escapes as JavaScript's encodeURIComponent does, with %20 and not + for a space: the contract
// encodes each key and value so before the whole is encoded as a query, and again in the URL.
func component(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// Kill ends a sandbox; IsNotFound tells that there was none.
func (c *Client) Kill(ctx context.Context, id string) error {
	_, err := c.do(ctx, http.MethodDelete, "/sandboxes/"+url.PathEscape(id), nil, nil, nil)
	return err
}

// SetTimeout makes the sandbox end seconds from now, sooner or later than before.
func (c *Client) SetTimeout(ctx context.Context, id string, seconds int) error {
	_, err := c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/timeout", nil, map[string]int{"timeout": seconds}, nil)
	return err
}

// Logs returns at most limit of the last lines that the guest printed on its console.
func (c *Client) Logs(ctx context.Context, id string, limit int) ([]string, error) {
	var reply struct {
		Logs []struct {
			Message string `json:"message"`
		} `json:"logs"`
	}
	// The API's limit counts from where the direction starts.
	query := url.Values{"limit": {strconv.Itoa(limit)}, "direction": {"backward"}}
	if _, err := c.do(ctx, http.MethodGet, "/v2/sandboxes/"+url.PathEscape(id)+"/logs", query, nil, &reply); err != nil {
		return nil, err
	}
	lines := make([]string, len(reply.Logs))
	for i, l := range reply.Logs {
		lines[len(lines)-1-i] = l.Message
	}
	return lines, nil
}

// do sends one request and decodes the reply into out, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("X-API-KEY", c.key)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("call the control plane (is `wrenn up` running?): %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the reply: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		return nil, refusal(resp.StatusCode, data)
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return nil, fmt.Errorf("%s %s: decode the reply: %w", method, path, err)
		}
	}
	return resp.Header, nil
}

func refusal(status int, body []byte) error {
	e := &Error{}
	if json.Unmarshal(body, e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%.200s", body)
	}
	e.Code = status
	return e
}
