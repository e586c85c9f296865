package files

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// The operations that a signature can allow.
const (
	opRead  = "read"
	opWrite = "write"
)

var (
	errSignature = errors.New("missing or wrong access token or signature")
	// errExpired has the words that E2B's clients know.
	errExpired = errors.New("signature is already expired")
)

// Sign makes the signature that lets whoever holds it read ("read") or write ("write") one path as one
// user, in place of the token: path and user exactly as they stand in the query, "" where absent;
// expiry in seconds since the epoch, "" for none.
func Sign(path, op, user, token, expiry string) string {
	parts := []string{path, op, user, token}
	if expiry != "" {
		parts = append(parts, expiry)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// checkSignature compares in constant time, and looks at the time only of a signature that is right.
func checkSignature(given, path, op, user, token, expiry string, now time.Time) error {
	want := Sign(path, op, user, token, expiry)
	if subtle.ConstantTimeCompare([]byte(given), []byte(want)) != 1 {
		return errSignature
	}
	if expiry == "" {
		return nil
	}
	at, err := strconv.ParseInt(expiry, 10, 64)
	if err != nil {
		return errSignature
	}
	if at < now.Unix() {
		return errExpired
	}
	return nil
}
