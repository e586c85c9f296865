package firecracker

import (
	"encoding/json"
	"fmt"
	"strings"
)

// APIError is a refusal by the VMM.
type APIError struct {
	// Method and Path are of the call that was refused.
	Method, Path string
	// Status is the HTTP status: 400 for nearly everything, 413 or 503 for limits.
	Status int
	// FaultMessage is Firecracker's own text.
	FaultMessage string
}

func (e *APIError) Error() string {
	return fmt.Sprintf("firecracker %s %s: status %d: %s", e.Method, e.Path, e.Status, e.FaultMessage)
}

// maxFault bounds the text of an answer that is not Firecracker's JSON.
const maxFault = 1024

func newAPIError(method, path string, status int, body []byte) *APIError {
	var answer struct {
		Fault string `json:"fault_message"`
		Error string `json:"error"`
	}
	// Errors of the HTTP layer are not always valid JSON: their text may hold a raw newline.
	text := strings.TrimSpace(string(body))
	if json.Unmarshal(body, &answer) == nil {
		switch {
		case answer.Fault != "":
			text = answer.Fault
		case answer.Error != "":
			text = answer.Error
		}
	}
	if len(text) > maxFault {
		text = text[:maxFault]
	}
	return &APIError{Method: method, Path: path, Status: status, FaultMessage: text}
}
