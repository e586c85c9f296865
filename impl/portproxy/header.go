package portproxy

import (
	"net/http"
	"net/textproto"
	"strings"
)

// perHop are the headers that concern one connection alone (RFC 9110, 7.6.1, and what servers take for such).
var perHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// forwarded are the headers by which a hop tells of the client: they are its own to set.
var forwarded = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

// dropPerHop takes from h, a request's or an answer's header, what concerns the connection on which it came.
func dropPerHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	for _, name := range perHop {
		delete(h, name)
	}
}

// hasToken says whether one of values, each a list with commas, has token, whatever its case.
func hasToken(values []string, token string) bool {
	for _, list := range values {
		for v := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(textproto.TrimString(v), token) {
				return true
			}
		}
	}
	return false
}

// protocol returns the protocol to which the connection of a message with header h is to be switched, or has been;
// empty means none.
func protocol(h http.Header) string {
	if !hasToken(h["Connection"], "Upgrade") {
		return ""
	}
	return h.Get("Upgrade")
}
