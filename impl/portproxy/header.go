package portproxy

import (
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
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

// protocol returns the protocol to which the connection of a message with header h is to be switched, or has been;
// empty means none.
func protocol(h http.Header) string {
	if !httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade") {
		return ""
	}
	return h.Get("Upgrade")
}
