package egress

import (
	"errors"
	"fmt"
	"strings"
)

const (
	// maxName and maxLabel are the longest name and label in bytes, RFC 1035 section 2.3.4, as they are
	// written, without the dot at the end.
	maxName  = 253
	maxLabel = 63
)

// wildcard is how a name begins that stands for all names below another.
const wildcard = "*."

// ParseDomain returns a name ("example.com") or a wildcard ("*.example.com") in its plain form: lower
// case, without the dot that may end it. The error says what is wrong, without naming a field.
func ParseDomain(s string) (string, error) {
	domain := strings.ToLower(strings.TrimSuffix(s, "."))
	name := strings.TrimPrefix(domain, wildcard)
	if len(domain) > maxName {
		return "", fmt.Errorf("a name has at most %d bytes (RFC 1035)", maxName)
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if err := checkLabel(label); err != nil {
			return "", err
		}
	}
	// No top-level domain is a number, but every mistyped address ends with one.
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "", errors.New("an address has four numbers of 0 to 255, and a name does not end with a number")
	}
	return domain, nil
}

// checkLabel takes the letters of a host name, and '_', which names of services have.
func checkLabel(label string) error {
	if label == "" || len(label) > maxLabel {
		return fmt.Errorf("each part of a name between dots has 1 to %d bytes (RFC 1035)", maxLabel)
	}
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '*':
			return errors.New("'*' stands for whole names before the first dot alone, as in *.example.com; all of the internet is 0.0.0.0/0")
		case c >= 0x80:
			return errors.New("a name with other letters than a-z is written in its ASCII form (xn--...)")
		default:
			return errors.New("it must be an IPv4 address, a range such as 192.0.2.0/24, or a host name, without scheme, port and path")
		}
	}
	return nil
}

// MatchDomain reports whether a domain, in the form that ParseDomain returns, covers a name, which may
// end with a dot and be in upper case. A wildcard covers every name below its own, at any depth, and not
// that name itself.
func MatchDomain(domain, name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	parent, ok := strings.CutPrefix(domain, wildcard)
	if !ok {
		return domain == name
	}
	below, ok := strings.CutSuffix(name, "."+parent)
	return ok && below != ""
}
