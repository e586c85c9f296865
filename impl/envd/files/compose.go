package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/answer"
)

const (
	// maxCompose bounds the body of a request to compose, in bytes.
	maxCompose = 1 << 20
	// maxSources bounds how many files are put together.
	maxSources = 1024
)

type composeRequest struct {
	SourcePaths []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// Compose makes one file of several, in their order, and removes those: how a client uploads a large
// file in parts. The kernel copies, sharing blocks where the file system can. The caller has checked the
// token.
func (h *Handler) Compose(w http.ResponseWriter, r *http.Request) {
	var req composeRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCompose)).Decode(&req); err != nil {
		if status := statusOf(err); status != http.StatusInternalServerError {
			h.fail(w, r, err)
			return
		}
		h.fail(w, r, bodyError(err))
		return
	}
	out, err := h.compose(r.Header, req)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	answer.JSON(w, http.StatusOK, out)
}

func (h *Handler) compose(header http.Header, req composeRequest) (written, error) {
	u, err := account.OfRequest(header, req.Username, h.settings.User())
	if err != nil {
		return written{}, err
	}
	switch {
	case len(req.SourcePaths) == 0:
		return written{}, bad("source_paths: must not be empty")
	case len(req.SourcePaths) > maxSources:
		return written{}, bad("source_paths: more than %d", maxSources)
	case req.Destination == "":
		return written{}, bad("destination: must not be empty")
	}
	to, err := account.Path(req.Destination, u, h.settings.Workdir())
	if err != nil {
		return written{}, fmt.Errorf("destination: %w", err)
	}
	sources := make([]string, 0, len(req.SourcePaths))
	for i, raw := range req.SourcePaths {
		path, err := account.Path(raw, u, h.settings.Workdir())
		if err != nil {
			return written{}, fmt.Errorf("source_paths[%d]: %w", i, err)
		}
		sources = append(sources, path)
	}
	if err := concat(to, sources, u); err != nil {
		return written{}, err
	}
	return written{Path: to, Name: filepath.Base(to), Type: "file"}, nil
}

// concat writes beside the destination and renames, so that a failure leaves it and the sources as they
// were, and a source may be the destination.
func concat(to string, sources []string, u account.User) (err error) {
	if info, err := os.Stat(to); err == nil {
		if err := regular(to, info); err != nil {
			return err
		}
	}
	if err := account.MakeParents(filepath.Dir(to), u); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".envd-compose-")
	if err != nil {
		return fmt.Errorf("compose: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	for _, s := range sources {
		if err := appendFile(f, s); err != nil {
			return errors.Join(fmt.Errorf("compose: %w", err), f.Close())
		}
	}
	if err := errors.Join(f.Chmod(0o644), f.Close(), u.Own(f.Name())); err != nil {
		return fmt.Errorf("compose: %w", err)
	}
	if err := os.Rename(f.Name(), to); err != nil {
		return fmt.Errorf("compose: %w", err)
	}
	for _, s := range sources {
		if s != to {
			_ = os.Remove(s) // the result is whole; a part that stays is only litter
		}
	}
	return nil
}

func appendFile(dst *os.File, path string) error {
	src, _, err := openRegular(path)
	if err != nil {
		return fmt.Errorf("source %q: %w", path, err)
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, src.Close())
}
