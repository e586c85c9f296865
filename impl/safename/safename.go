// Package safename is the allow-list for every name from outside that becomes part of a path, a
// kernel object's name or a command line: templates, snapshots and sandbox ids.
//
// It is checked at the public API and again where the name is used, so that a caller that skips the
// first door still meets the second.
package safename

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// MaxLength is the longest name in bytes. It leaves room for a prefix and a suffix within the 255
// bytes that Linux allows a file name (NAME_MAX in limits.h).
const MaxLength = 64

// Rule states what Check accepts, in words fit for an error message.
const Rule = "1 to 64 characters of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or a digit, without '..'"

// ErrInvalid is what every error of this package wraps.
var ErrInvalid = errors.New("invalid name")

var name = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)

// maxSandboxID is the longest sandbox id in bytes.
const maxSandboxID = 32

// Check returns an error that wraps ErrInvalid and states the rule unless name is a safe template or
// snapshot name. field says which input it was.
func Check(field, value string) error {
	if !name.MatchString(value) || strings.Contains(value, "..") {
		return fmt.Errorf("%w: %s %s must be %s", ErrInvalid, field, quote(value), Rule)
	}
	return nil
}

// CheckSandboxID returns an error that wraps ErrInvalid unless value is 1 to 32 characters of a-z and
// 0-9. It is narrower than Check because a sandbox id is also part of a host name, whose first label
// is split at '-'.
func CheckSandboxID(field, value string) error {
	other := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') }
	if value == "" || len(value) > maxSandboxID || strings.ContainsFunc(value, other) { // not a regexp: it is asked for each proxied request
		return fmt.Errorf("%w: %s %s must be 1 to 32 characters of a-z and 0-9", ErrInvalid, field, quote(value))
	}
	return nil
}

// quote shortens hostile input: an error message is no place for a megabyte of it.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q... (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%q", s)
}
