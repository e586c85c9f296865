package portproxy

import (
	"context"
	"encoding/json"
	"errors"
	"html/template"
	"net"
	"net/http"
	"strings"
)

// Errors by which a lookup says why a sandbox cannot be reached; anything else counts as our own fault.
var (
	// ErrNotFound: the sandbox is unknown, gone or paused.
	ErrNotFound = errors.New("sandbox not found")
	// ErrPaused: the sandbox is paused and wants traffic to wake it. The target that comes with it says who may.
	ErrPaused = errors.New("sandbox is paused")
	// ErrDenied: the sandbox may not be resumed.
	ErrDenied = errors.New("sandbox may not be resumed")
	// ErrTransition: the sandbox is between two states; it is worth trying again.
	ErrTransition = errors.New("sandbox is changing its state")
	// ErrUnreachable: the sandbox's host cannot be reached at the moment.
	ErrUnreachable = errors.New("host is unreachable")
)

// errTraffic: the sandbox's ports are not public, and the request has no token for them.
var errTraffic = errors.New("traffic token is missing or wrong")

// errTooMany: the sandbox has as many exchanges under way as it may.
var errTooMany = errors.New("too many exchanges under way")

// answer is the body of a refusal. Clients branch on the integer code and on some of the messages, which
// are therefore part of the contract.
type answer struct {
	SandboxID string `json:"sandboxId,omitempty"`
	Message   string `json:"message"`
	Port      uint16 `json:"port,omitempty"`
	Code      int    `json:"code"`
}

const (
	messageNotFound = "The sandbox was not found"
	messageClosed   = "The sandbox is running but port is not open"
)

// lookupAnswer says what a failed lookup means to the client.
func lookupAnswer(to route, err error) answer {
	a := answer{SandboxID: to.id}
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrPaused): // paused, and nobody here to wake it
		a.Code, a.Message = http.StatusBadGateway, messageNotFound
	case errors.Is(err, ErrTransition):
		a.Code, a.Message = http.StatusConflict, "The sandbox is changing its state, try again"
	case errors.Is(err, ErrDenied):
		a.Code, a.Message = http.StatusForbidden, "The sandbox is paused and may not be resumed"
	case errors.Is(err, errTraffic):
		a.Code, a.Message = http.StatusForbidden, "The traffic access token is missing or wrong, in the header "+headerTraffic
	case errors.Is(err, errTooMany):
		a.Code, a.Message = http.StatusTooManyRequests, "The sandbox has too many connections"
	case errors.Is(err, errResumeTimeout):
		a.Code, a.Message = http.StatusGatewayTimeout, "The sandbox did not resume in time, try again"
	case errors.Is(err, ErrUnreachable):
		a.Code, a.Message = http.StatusServiceUnavailable, "The host of the sandbox cannot be reached, try again"
	default:
		a.Code, a.Message = http.StatusInternalServerError, "The sandbox could not be looked up"
	}
	return a
}

// guestAnswer says what a failed exchange with a guest's port means to the client.
func guestAnswer(to route, err error) answer {
	a := answer{SandboxID: to.id, Port: to.port, Code: http.StatusBadGateway}
	switch {
	case errors.Is(err, errEvicted):
		a.Port, a.Message = 0, messageNotFound
	case isDialError(err) && isTimeout(err):
		a.Code, a.Message = http.StatusGatewayTimeout, "The sandbox did not take the connection in time"
	case isDialError(err):
		a.Message = messageClosed
	default:
		a.Message = "The program on this port closed the connection without a valid answer"
	}
	return a
}

// hostAnswer says what a failed exchange with an agent means to the client.
func hostAnswer(to route, err error) answer {
	if isTimeout(err) {
		return answer{SandboxID: to.id, Code: http.StatusGatewayTimeout, Message: "The host of the sandbox did not take the connection in time"}
	}
	return lookupAnswer(to, ErrUnreachable)
}

func isDialError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &n) && n.Timeout())
}

// write sends a as JSON, or as a small page to a browser.
func (a answer) write(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if isNavigation(r) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(a.Code)
		_ = page.Execute(w, a)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(a.Code)
	_ = json.NewEncoder(w).Encode(a)
}

// writeBadRoute answers a request that names no sandbox and port, in plain text as E2B's proxy does.
func writeBadRoute(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusBadRequest)
}

// isNavigation says whether a person is looking at a page: what the request wants is asked first, and
// only a request that does not say is judged by its User-Agent.
func isNavigation(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	accept := r.Header.Get("Accept")
	switch {
	case strings.Contains(accept, "text/html"):
		return true
	case accept != "" && accept != "*/*":
		return false
	}
	return strings.HasPrefix(r.Header.Get("User-Agent"), "Mozilla/")
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{.Code}} {{.Message}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em}code{background:#8882;padding:.1em .3em}</style>
<h1>{{.Message}}</h1>
<p>{{with .SandboxID}}Sandbox <code>{{.}}</code>{{end}}{{with .Port}}, port <code>{{.}}</code>{{end}}</p>
</html>
`))
