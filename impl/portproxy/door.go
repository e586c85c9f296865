package portproxy

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/url"
	"strings"

	"wrenn/impl/transport"
)

// A person's browser can send no header of ours, so that by path it is let in by a ticket: once in the query
// of a link, from then on in a cookie. The ticket opens the ports of one sandbox, and nothing else of the
// agent: pages of the sandbox have the agent's origin, and could use whatever the browser sends by itself.
const (
	ticketQuery  = "wrenn-ticket"
	ticketCookie = "wrenn-ticket"
)

// Ticket returns what opens the ports of sandbox id at the agent of that token, in a link such as
// http://agent/proxy/{id}/{port}/?wrenn-ticket={ticket}. It is good for as long as the token. Sandboxes
// that one browser has opened by path share an origin, and so can read each other's pages: by name they
// cannot.
func Ticket(agentToken, id string) string {
	mac := hmac.New(sha256.New, []byte(agentToken))
	mac.Write([]byte("proxy:" + id))
	return hex.EncodeToString(mac.Sum(nil))
}

// Protect returns the handler of a whole agent: requests that bear its token go to h if their raw path
// starts with /proxy/ and to next otherwise; of the others only those pass that bear a sandbox's Ticket and
// ask for that sandbox's ports. With an empty token nobody passes.
func (h *Host) Protect(token string, next http.Handler) http.Handler {
	trusted := transport.RequireAgentToken(token, h.Mount(next))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header[transport.AgentTokenHeader] != nil || token == "" || !strings.HasPrefix(r.RequestURI, pathPrefix) {
			trusted.ServeHTTP(w, r)
			return
		}
		h.servePerson(w, r, token, trusted)
	})
}

// servePerson serves a request without the agent's token; refuse answers it if it bears no ticket either.
func (h *Host) servePerson(w http.ResponseWriter, r *http.Request, token string, refuse http.Handler) {
	to, _, err := pathRoute(r.RequestURI)
	if err != nil {
		writeBadRoute(w, err)
		return
	}
	ticket := Ticket(token, to.id)
	if given, rest, ok := takeTicket(r.RequestURI); ok {
		if !hmac.Equal([]byte(given), []byte(ticket)) {
			refuse.ServeHTTP(w, r)
			return
		}
		http.SetCookie(w, &http.Cookie{ //nolint:gosec // Secure where there is TLS; an agent on loopback has none
			Name: ticketCookie, Value: ticket, Path: pathPrefix + to.id + "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: r.TLS != nil,
		})
		redirect(w, rest, http.StatusSeeOther)
		return
	}
	if !takeCookie(r.Header, ticketCookie, ticket) {
		refuse.ServeHTTP(w, r)
		return
	}
	if path, query := cutPath(r.RequestURI); strings.Count(path, "/") == 3 { // relative links need the slash
		redirect(w, path+"/"+query, http.StatusPermanentRedirect)
		return
	}
	r.Header.Del("X-Forwarded-For")
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		r.Header.Set("X-Forwarded-For", ip)
	}
	r.Header.Set("X-Forwarded-Host", r.Host)
	h.ServeHTTP(w, r)
}

// redirect answers without a body; target is one of our own paths.
func redirect(w http.ResponseWriter, target string, code int) {
	w.Header().Set("Location", target)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer") // the ticket is in the address
	w.WriteHeader(code)
}

// takeTicket splits the ticket off a request target. What is left is as it came.
func takeTicket(target string) (ticket, rest string, ok bool) {
	path, query, _ := strings.Cut(target, "?")
	var kept []string
	for _, pair := range strings.Split(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name != ticketQuery {
			kept = append(kept, pair)
			continue
		}
		if v, err := url.QueryUnescape(value); err == nil {
			ticket, ok = v, true
		}
	}
	if rest = strings.Join(kept, "&"); rest != "" {
		path += "?" + rest
	}
	return ticket, path, ok
}

// takeCookie removes every cookie of that name from h and says whether one had that value.
func takeCookie(h http.Header, name, value string) bool {
	found := false
	var lines []string
	for _, line := range h["Cookie"] {
		var kept []string
		for _, pair := range strings.Split(line, ";") {
			n, v, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if n != name {
				kept = append(kept, pair)
				continue
			}
			found = found || hmac.Equal([]byte(v), []byte(value))
		}
		if len(kept) > 0 {
			lines = append(lines, strings.TrimLeft(strings.Join(kept, ";"), " "))
		}
	}
	if lines == nil {
		h.Del("Cookie")
	} else {
		h["Cookie"] = lines
	}
	return found
}
