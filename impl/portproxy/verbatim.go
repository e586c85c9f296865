package portproxy

import (
	"net/http"
	"net/url"
	"strings"

	"wrenn/impl/transport"
)

// targetURL is what asks base for target, the path and query exactly as they came over the wire: Opaque is what
// net/http puts into the request line untouched. It cannot hold a target that starts with two slashes (it would be
// taken for a host name), so there the parsed form is used, which differs only in that bytes that no URL may hold raw
// ('|', '"', non-ASCII) leave percent-encoded.
func targetURL(base *url.URL, target string) *url.URL {
	out := &url.URL{Scheme: base.Scheme, Host: base.Host, Opaque: target}
	if strings.HasPrefix(target, "//") {
		if u, err := url.ParseRequestURI(target); err == nil {
			out.Opaque = ""
			out.Path, out.RawPath, out.RawQuery, out.ForceQuery = u.Path, u.RawPath, u.RawQuery, u.ForceQuery
		}
	}
	return out
}

// rawTarget returns r's path and query as they came over the wire.
func rawTarget(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI() // absolute form, as sent to a proxy
}

// keyPrefix marks our API keys, so that one sent here by mistake is told from a header of the user's own
// program that happens to have the same name.
const keyPrefix = "e2b_"

// dropPrivate removes what is between the client and Wrenn from a request to a guest: routing headers and
// credentials. The guest daemon's own token and a user's Authorization stay.
func dropPrivate(h http.Header) {
	for _, name := range []string{headerID, headerPort, headerTraffic, transport.AgentTokenHeader} {
		delete(h, name)
	}
	if strings.HasPrefix(h.Get("X-Api-Key"), keyPrefix) {
		h.Del("X-Api-Key")
	}
	if _, value, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.HasPrefix(value, keyPrefix) {
		h.Del("Authorization")
	}
}
