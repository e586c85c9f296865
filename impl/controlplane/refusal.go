package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"wrenn/impl/agentclient"
	"wrenn/impl/store"
)

// refusal is an error that the client is told; every other error is answered with 500 and logged.
type refusal struct {
	code    int
	message string
}

// Error returns the message.
func (r *refusal) Error() string { return fmt.Sprintf("%d: %s", r.code, r.message) }

func refuse(code int, format string, args ...any) error {
	return &refusal{code: code, message: fmt.Sprintf(format, args...)}
}

func notFound(id string) error {
	return refuse(http.StatusNotFound, "sandbox %q was not found", id)
}

// agentCodes says which HTTP status tells of an agent's error. A host that is full or cannot run VMs is 503:
// the request was right and may succeed later or elsewhere.
var agentCodes = []struct {
	kind error
	code int
}{
	{agentclient.ErrInvalid, http.StatusBadRequest},
	{agentclient.ErrNotFound, http.StatusNotFound},
	{agentclient.ErrExists, http.StatusConflict},
	{agentclient.ErrConflict, http.StatusConflict},
	{agentclient.ErrExhausted, http.StatusServiceUnavailable},
	{agentclient.ErrUnavailable, http.StatusServiceUnavailable},
	{agentclient.ErrUnsupported, http.StatusNotImplemented},
	{agentclient.ErrInternal, http.StatusInternalServerError},
}

// asRefusal says what err means to the client, in the agent's own words where it spoke.
func asRefusal(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	var a *agentclient.Error
	if errors.As(err, &a) {
		for _, c := range agentCodes {
			if errors.Is(a, c.kind) {
				return &refusal{code: c.code, message: a.Message}
			}
		}
		return &refusal{code: http.StatusServiceUnavailable, message: "the host does not answer now, try again"}
	}
	if errors.Is(err, store.ErrConflict) {
		return &refusal{code: http.StatusConflict, message: "the sandbox is being changed by somebody else, try again"}
	}
	return &refusal{code: http.StatusInternalServerError, message: "internal error"}
}

// answerError writes err as JSON. The cause of a fault of our own goes to the log only.
func (s *server) answerError(w http.ResponseWriter, r *http.Request, err error) {
	out := asRefusal(err)
	if out.code >= http.StatusInternalServerError && out.code != http.StatusNotImplemented && !errors.Is(err, context.Canceled) {
		s.cfg.Logger.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "code", out.code, "error", err)
	}
	answer(w, out.code, struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{out.code, out.message})
}

// answer writes body as JSON. An error can only mean that the client has gone.
func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}
