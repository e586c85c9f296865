package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// AutoResume says whether traffic to a paused sandbox resumes it.
type AutoResume struct {
	Enabled bool `json:"enabled"`
}

// Lifecycle is what becomes of a sandbox at its end ("kill" or "pause"), and whether traffic resumes it.
type Lifecycle struct {
	OnTimeout  string `json:"onTimeout"`
	AutoResume bool   `json:"autoResume"`
}

// Snapshot is what sandboxes can start from: memory and disk of another one.
type Snapshot struct {
	// SnapshotID is what Create takes as TemplateID, Names its name with its tag, if it has one.
	SnapshotID string         `json:"snapshotID"`
	Names      []string       `json:"names"`
	Wrenn      SnapshotDetail `json:"wrenn"`
}

// SnapshotDetail is of which sandbox a snapshot was taken and what it holds.
type SnapshotDetail struct {
	SandboxID  string    `json:"sandboxID"`
	TemplateID string    `json:"templateID"`
	CreatedAt  time.Time `json:"createdAt"`
	CPUCount   int       `json:"cpuCount"`
	MemoryMB   int       `json:"memoryMB"`
	DiskSizeMB int       `json:"diskSizeMB"`
	// SizeBytes is what it took on its host when it was made.
	SizeBytes int64 `json:"sizeBytes"`
}

// Fork is one copy of a sandbox, or why there is none.
type Fork struct {
	Sandbox *Sandbox `json:"sandbox,omitempty"`
	Error   *Error   `json:"error,omitempty"`
}

// Pause stops a sandbox and keeps its memory and disk, with filesOnly its disk alone. It returns the time of
// each phase, the last of which is "total".
func (c *Client) Pause(ctx context.Context, id string, filesOnly bool) ([]Stage, error) {
	header, err := c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/pause", nil, map[string]bool{"memory": !filesOnly}, nil)
	return timings(header), err
}

// Resume is Connect; with filesOnly a paused sandbox leaves its memory aside and boots anew from its disk.
func (c *Client) Resume(ctx context.Context, id string, timeout int, filesOnly bool) (Sandbox, error) {
	return c.connect(ctx, id, timeout, filesOnly)
}

func (c *Client) connect(ctx context.Context, id string, timeout int, filesOnly bool) (Sandbox, error) {
	body := map[string]any{}
	if timeout > 0 {
		body["timeout"] = timeout
	}
	if filesOnly {
		body["memory"] = false
	}
	var s Sandbox
	_, err := c.do(ctx, http.MethodPost, "/v2/sandboxes/"+url.PathEscape(id)+"/connect", nil, body, &s)
	return s, err
}

// CreateSnapshot keeps a sandbox's memory and disk; the sandbox goes on. An empty name leaves it an id alone;
// a name that is taken goes over to it. It returns the time of each phase too.
func (c *Client) CreateSnapshot(ctx context.Context, id, name string) (Snapshot, []Stage, error) {
	body := map[string]string{}
	if name != "" {
		body["name"] = name
	}
	var sn Snapshot
	header, err := c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/snapshots", nil, body, &sn)
	return sn, timings(header), err
}

// ListSnapshots returns all snapshots, newest first, through all pages. An empty sandboxID means of all
// sandboxes.
func (c *Client) ListSnapshots(ctx context.Context, sandboxID string) ([]Snapshot, error) {
	query := url.Values{}
	if sandboxID != "" {
		query.Set("sandboxID", sandboxID)
	}
	all := []Snapshot{}
	for {
		var page []Snapshot
		header, err := c.do(ctx, http.MethodGet, "/snapshots", query, nil, &page)
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

// DeleteSnapshot deletes a snapshot by its id or name; IsNotFound tells that there was none.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	_, err := c.do(ctx, http.MethodDelete, "/templates/"+url.PathEscape(id), nil, nil, nil)
	return err
}

// Fork makes count copies of a sandbox (1 to 100) that live for timeout seconds; 0 takes the server's default
// of 15. Each succeeds or fails by itself. It returns the time of each phase of the snapshot too.
func (c *Client) Fork(ctx context.Context, id string, count, timeout int) ([]Fork, []Stage, error) {
	body := map[string]int{"count": count}
	if timeout > 0 {
		body["timeout"] = timeout
	}
	var forks []Fork
	header, err := c.do(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/fork", nil, body, &forks)
	return forks, timings(header), err
}

// timings reads the header Server-Timing: name;dur=milliseconds, separated by commas.
func timings(header http.Header) (stages []Stage) {
	for entry := range strings.SplitSeq(header.Get("Server-Timing"), ",") {
		name, duration, ok := strings.Cut(strings.TrimSpace(entry), ";dur=")
		ms, err := strconv.ParseFloat(duration, 64)
		if ok && err == nil {
			stages = append(stages, Stage{Name: name, Ms: ms})
		}
	}
	return stages
}
