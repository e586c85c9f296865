package agentclient

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"
)

// What can go wrong, for errors.Is.
var (
	// ErrInvalid: the agent refuses an argument and names it.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotFound: no such sandbox, or no such template.
	ErrNotFound = errors.New("not found")
	// ErrExists: the id is taken.
	ErrExists = errors.New("already exists")
	// ErrConflict: the sandbox's state does not allow it.
	ErrConflict = errors.New("conflict")
	// ErrExhausted: the host has no slot, memory or disk left.
	ErrExhausted = errors.New("resource exhausted")
	// ErrUnavailable: the agent says that it cannot run VMs now.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnreachable: no answer came from the agent, so whether the call took effect is unknown.
	ErrUnreachable = errors.New("agent unreachable")
	// ErrUnsupported: the agent is of a version that cannot do this.
	ErrUnsupported = errors.New("not supported")
	// ErrInternal: the agent failed.
	ErrInternal = errors.New("internal error")
)

// Error is an agent's refusal or silence.
type Error struct {
	// Kind is one of this package's sentinels.
	Kind error
	// Message is the agent's own sentence, or why there is none; fit for a user.
	Message string
	agent   string
	op      string
	cause   error
}

// Error names the agent, what was asked of it, and what it said.
func (e *Error) Error() string {
	return fmt.Sprintf("agent %s: %s: %v: %s", e.agent, e.op, e.Kind, e.Message)
}

// Unwrap returns the sentinel and the cause.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.cause} }

var kinds = map[connect.Code]error{
	connect.CodeInvalidArgument:    ErrInvalid,
	connect.CodeOutOfRange:         ErrInvalid,
	connect.CodeNotFound:           ErrNotFound,
	connect.CodeAlreadyExists:      ErrExists,
	connect.CodeFailedPrecondition: ErrConflict,
	connect.CodeAborted:            ErrConflict,
	connect.CodeResourceExhausted:  ErrExhausted,
	connect.CodeUnavailable:        ErrUnavailable,
	connect.CodeUnimplemented:      ErrUnsupported,
}

// fail turns a call's error into an *Error; nil stays nil.
func (c *Client) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Kind: ErrInternal, Message: err.Error(), agent: c.name, op: op, cause: err}
	var wire *connect.Error
	if !errors.As(err, &wire) {
		e.Kind = ErrUnreachable
		return e
	}
	e.Message = wire.Message()
	switch {
	case wire.Code() == connect.CodeUnauthenticated:
		e.Kind, e.Message = ErrInternal, "the agent does not accept this control plane's token"
	// What the client itself made up (a refused dial, a cut connection, a deadline) is not the agent's word.
	case !connect.IsWireError(err), wire.Code() == connect.CodeCanceled, wire.Code() == connect.CodeDeadlineExceeded:
		e.Kind = ErrUnreachable
	case kinds[wire.Code()] != nil:
		e.Kind = kinds[wire.Code()]
	}
	return e
}
