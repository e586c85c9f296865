package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/settings"
	pb "wrenn/proto/gen/envd/filesystem"
	"wrenn/proto/gen/envd/filesystem/filesystemconnect"
)

// maxDepth bounds how deep one ListDir goes; PATH_MAX admits no more directories than that.
const maxDepth = account.MaxPath / 2

// Handler speaks filesystem.Filesystem. Close ends the watchers that clients poll.
type Handler struct {
	filesystemconnect.UnimplementedFilesystemHandler
	settings *settings.Settings
	polled   polled
}

// NewHandler makes a handler.
func NewHandler(s *settings.Settings) *Handler {
	return &Handler{settings: s, polled: polled{watchers: map[string]*pollWatcher{}}}
}

// Close ends what outlives requests.
func (h *Handler) Close() { h.polled.close() }

// resolve finds the user of a request and what its path means to them.
func (h *Handler) resolve(header http.Header, field, raw string) (account.User, string, error) {
	u, err := account.OfRequest(header, "", h.settings.User())
	if err != nil {
		return u, "", wireError(err)
	}
	path, err := account.Path(raw, u, h.settings.Workdir())
	if err != nil {
		return u, "", invalid("%s: %w", field, err)
	}
	return u, path, nil
}

// Stat returns one entry.
func (h *Handler) Stat(_ context.Context, req *connect.Request[pb.StatRequest]) (*connect.Response[pb.StatResponse], error) {
	_, path, err := h.resolve(req.Header(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	e, err := newNames().entry(path)
	if err != nil {
		return nil, wireError(err)
	}
	return connect.NewResponse(&pb.StatResponse{Entry: infoOf(e)}), nil
}

// MakeDir makes a directory and its parents for the user.
func (h *Handler) MakeDir(_ context.Context, req *connect.Request[pb.MakeDirRequest]) (*connect.Response[pb.MakeDirResponse], error) {
	u, path, err := h.resolve(req.Header(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil {
		if info.IsDir() {
			return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("directory %q exists", path))
		}
		return nil, invalid("path: %q exists and is not a directory", path)
	}
	if err := account.MakeParents(path, u); err != nil {
		return nil, wireError(err)
	}
	e, err := newNames().entry(path)
	if err != nil {
		return nil, wireError(err)
	}
	return connect.NewResponse(&pb.MakeDirResponse{Entry: infoOf(e)}), nil
}

// Move renames source to destination, whose parents it makes.
func (h *Handler) Move(_ context.Context, req *connect.Request[pb.MoveRequest]) (*connect.Response[pb.MoveResponse], error) {
	u, from, err := h.resolve(req.Header(), "source", req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	_, to, err := h.resolve(req.Header(), "destination", req.Msg.GetDestination())
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(from); err != nil {
		return nil, wireError(fmt.Errorf("move: %w", err))
	}
	if err := account.MakeParents(filepath.Dir(to), u); err != nil {
		return nil, wireError(err)
	}
	if err := os.Rename(from, to); err != nil {
		return nil, wireError(fmt.Errorf("move: %w", err))
	}
	e, err := newNames().entry(to)
	if err != nil {
		return nil, wireError(err)
	}
	return connect.NewResponse(&pb.MoveResponse{Entry: infoOf(e)}), nil
}

// ListDir lists a directory.
func (h *Handler) ListDir(_ context.Context, req *connect.Request[pb.ListDirRequest]) (*connect.Response[pb.ListDirResponse], error) {
	_, path, err := h.resolve(req.Header(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if err := isDir(path); err != nil {
		return nil, err
	}
	depth := max(1, min(int(req.Msg.GetDepth()), maxDepth))
	entries, err := newNames().list(path, depth)
	if err != nil {
		return nil, wireError(err)
	}
	out := &pb.ListDirResponse{Entries: make([]*pb.EntryInfo, 0, len(entries))}
	for _, e := range entries {
		out.Entries = append(out.Entries, infoOf(e))
	}
	return connect.NewResponse(out), nil
}

// isDir refuses what is no directory, as the wire says it.
func isDir(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("path %q does not exist", path))
	case err != nil:
		return wireError(err)
	case !info.IsDir():
		return invalid("path: %q is not a directory", path)
	}
	return nil
}

// Remove removes a file or a whole tree; what is not there is removed already.
func (h *Handler) Remove(_ context.Context, req *connect.Request[pb.RemoveRequest]) (*connect.Response[pb.RemoveResponse], error) {
	_, path, err := h.resolve(req.Header(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, invalid("path: the root directory cannot be removed")
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, wireError(fmt.Errorf("remove: %w", err))
	}
	return connect.NewResponse(&pb.RemoveResponse{}), nil
}
