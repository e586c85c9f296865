// Package files moves the content of the guest's files over plain HTTP, in constant memory.
package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/answer"
	"wrenn/impl/envd/metadata"
	"wrenn/impl/envd/settings"
)

// Handler answers the /files routes. It checks tokens and signatures itself.
type Handler struct {
	settings *settings.Settings
	log      *slog.Logger
}

// NewHandler makes a handler.
func NewHandler(s *settings.Settings, log *slog.Logger) *Handler {
	return &Handler{settings: s, log: log}
}

// target is whom a request speaks for and which file it names.
type target struct {
	user account.User
	path string // absolute; "" where the query names none
}

// authorize checks the token or, in its place, a signature.
func (h *Handler) authorize(r *http.Request, op string) error {
	if h.settings.Allows(r.Header.Get("X-Access-Token")) {
		return nil
	}
	q := r.URL.Query()
	if !q.Has("signature") {
		return errSignature
	}
	return checkSignature(q.Get("signature"), q.Get("path"), op, q.Get("username"), h.settings.Token(), q.Get("signature_expiration"), time.Now())
}

// find resolves the user and the path of a request's query.
func (h *Handler) find(r *http.Request) (target, error) {
	q := r.URL.Query()
	u, err := account.OfRequest(r.Header, q.Get("username"), h.settings.User())
	if err != nil || q.Get("path") == "" {
		return target{user: u}, err
	}
	path, err := account.Path(q.Get("path"), u, h.settings.Workdir())
	return target{user: u, path: path}, err
}

// requestError is a request that no guest could fulfil.
type requestError struct{ message string }

func (e requestError) Error() string { return e.message }

func bad(format string, args ...any) error { return requestError{fmt.Sprintf(format, args...)} }

// fail answers with the status that err has on the wire.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	if status == http.StatusInternalServerError {
		h.log.Warn("files", "method", r.Method, "error", err)
	}
	answer.Error(w, status, err.Error())
}

func statusOf(err error) int {
	var request requestError
	var tooBig *http.MaxBytesError
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, errSignature), errors.Is(err, errExpired),
		errors.Is(err, account.ErrUnknown), errors.Is(err, account.ErrCredentials):
		return http.StatusUnauthorized
	case errors.As(err, &tooBig):
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &request), errors.As(err, &syntax), errors.As(err, &kind),
		errors.Is(err, account.ErrPath), errors.Is(err, metadata.ErrInvalid),
		errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		return http.StatusBadRequest
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.ETXTBSY):
		return http.StatusForbidden
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}
