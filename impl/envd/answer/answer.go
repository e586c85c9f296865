// Package answer writes the daemon's plain HTTP replies: JSON bodies, and errors in the one shape that
// E2B's clients parse, {"code": <HTTP status>, "message": "..."}.
package answer

import (
	"encoding/json"
	"net/http"
)

type errorBody struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// JSON sends v with the status. v must be encodable; what cannot be sent any more is dropped.
func JSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// Error sends message with the status, as a body whose "code" is the status again.
func Error(w http.ResponseWriter, status int, message string) {
	h := w.Header()
	h.Del("Content-Length")
	h.Del("Content-Encoding")
	h.Del("Content-Disposition")
	JSON(w, status, errorBody{Code: status, Message: message})
}
