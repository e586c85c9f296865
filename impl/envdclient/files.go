package envdclient

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	pb "wrenn/proto/gen/envd/filesystem"
)

// Entry is a file or directory in the guest. A symbolic link has the type and mode of its target.
type Entry struct {
	Name     string
	Path     string // absolute
	Size     int64  // bytes; of the link itself, for one
	Mode     fs.FileMode
	Owner    string
	Group    string
	Modified time.Time
	Target   string // where a symbolic link leads; empty for others
}

// Stat returns one entry as user sees it (the daemon's default, if empty); a path that does not exist is
// an error with the code not_found.
func (c *Client) Stat(ctx context.Context, user, path string) (Entry, error) {
	res, err := c.files.Stat(ctx, as(user, &pb.StatRequest{Path: path}))
	if err != nil {
		return Entry{}, fmt.Errorf("stat %q in the guest: %w", path, err)
	}
	return entryOf(res.Msg.GetEntry()), nil
}

// List returns what a directory holds, depth levels deep (1: itself only), in walk order.
func (c *Client) List(ctx context.Context, user, path string, depth uint32) ([]Entry, error) {
	res, err := c.files.ListDir(ctx, as(user, &pb.ListDirRequest{Path: path, Depth: depth}))
	if err != nil {
		return nil, fmt.Errorf("list %q in the guest: %w", path, err)
	}
	out := make([]Entry, 0, len(res.Msg.GetEntries()))
	for _, e := range res.Msg.GetEntries() {
		out = append(out, entryOf(e))
	}
	return out, nil
}

// ReadFile opens a file for reading as a stream; the caller closes it. A missing file is an *Error with
// status 404.
func (c *Client) ReadFile(ctx context.Context, user, path string) (io.ReadCloser, error) {
	// The transport would ask for gzip by itself, which costs the guest more than the link saves.
	h := http.Header{"Accept-Encoding": {"identity"}}
	res, err := c.plain(ctx, http.MethodGet, fileRoute(user, path), h, nil)
	if err != nil {
		return nil, fmt.Errorf("read %q in the guest: %w", path, err)
	}
	return res.Body, nil
}

// WriteFile makes or replaces a file with all that content yields, and its missing parents, owned by
// user. size is content's length in bytes, or -1 where it is not known. A full disk is an *Error with
// status 507.
func (c *Client) WriteFile(ctx context.Context, user, path string, content io.Reader, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+fileRoute(user, path), content)
	if err != nil {
		return fmt.Errorf("write %q in the guest: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	res, err := c.send(req)
	if err != nil {
		return fmt.Errorf("write %q in the guest: %w", path, err)
	}
	return res.Body.Close()
}

func fileRoute(user, path string) string {
	q := url.Values{"path": {path}}
	if user != "" {
		q.Set("username", user)
	}
	return "/files?" + q.Encode()
}
