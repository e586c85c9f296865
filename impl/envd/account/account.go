// Package account knows the guest's users: who a request speaks for, where that user's home is, and
// what a path means to them. It reads the guest's own user database on each call, so a user made by a
// program in the guest exists for the daemon at once.
package account

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// Fallback is the user of requests that name none while no default user is set.
const Fallback = "root"

// maxName bounds a user name in bytes; Linux's own limit is 32.
const maxName = 256

// ErrUnknown says that the guest has no such user.
var ErrUnknown = errors.New("unknown user")

// ErrCredentials says that an Authorization header is not a user's.
var ErrCredentials = errors.New("malformed Authorization header")

// User is one user of the guest.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary groups, GID included
	Home   string   // absolute
}

// Lookup finds a user by name. Its errors wrap ErrUnknown where the user does not exist.
func Lookup(name string) (User, error) {
	if len(name) > maxName {
		return User{}, fmt.Errorf("look up user: name longer than %d bytes: %w", maxName, ErrUnknown)
	}
	u, err := user.Lookup(name)
	if err != nil {
		var unknown user.UnknownUserError
		if errors.As(err, &unknown) {
			return User{}, fmt.Errorf("look up user %q: %w", name, ErrUnknown)
		}
		return User{}, fmt.Errorf("look up user %q: %w", name, err)
	}
	return fromOS(u)
}

// Self is the user that the daemon runs as.
func Self() (User, error) {
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return User{}, fmt.Errorf("look up the daemon's own user: %w", err)
	}
	return fromOS(u)
}

// OfRequest finds the user of a request: the one that its Authorization header names, else named, else
// the given default, else Fallback, else (where the daemon may not become Fallback) the daemon's own.
func OfRequest(h http.Header, named, def string) (User, error) {
	name, err := fromHeader(h)
	if err != nil {
		return User{}, err
	}
	for _, n := range []string{name, named, def} {
		if n != "" {
			return Lookup(n)
		}
	}
	if os.Geteuid() != 0 {
		return Self()
	}
	return Lookup(Fallback)
}

// fromHeader returns the user name of `Authorization: Basic base64("name:")`, or "" without a header.
// The password part carries no secret in this protocol and is ignored.
func fromHeader(h http.Header) (string, error) {
	v := h.Get("Authorization")
	if v == "" {
		return "", nil
	}
	enc, ok := strings.CutPrefix(v, "Basic ")
	if !ok {
		return "", fmt.Errorf("%w: want the Basic scheme", ErrCredentials)
	}
	raw, err := base64.StdEncoding.DecodeString(enc)
	if err != nil {
		return "", fmt.Errorf("%w: not base64", ErrCredentials)
	}
	name, _, ok := strings.Cut(string(raw), ":")
	if !ok || name == "" {
		return "", fmt.Errorf("%w: want a user name and a colon", ErrCredentials)
	}
	return name, nil
}

func fromOS(u *user.User) (User, error) {
	uid, err := id(u.Uid)
	if err != nil {
		return User{}, fmt.Errorf("user %q: uid: %w", u.Username, err)
	}
	gid, err := id(u.Gid)
	if err != nil {
		return User{}, fmt.Errorf("user %q: gid: %w", u.Username, err)
	}
	groups := []uint32{gid}
	// A user whose groups cannot be read still has the primary one.
	if ids, err := u.GroupIds(); err == nil {
		for _, s := range ids {
			if g, err := id(s); err == nil && g != gid {
				groups = append(groups, g)
			}
		}
	}
	home := u.HomeDir
	if home == "" {
		home = "/"
	}
	return User{Name: u.Username, UID: uid, GID: gid, Groups: groups, Home: home}, nil
}

func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}
