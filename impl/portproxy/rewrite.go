package portproxy

import (
	"net"
	"net/http"
	"strings"
)

// rewriter changes the references in an answer's header.
type rewriter struct {
	// reference rewrites a URL reference, cookiePath the Path of a cookie.
	reference, cookiePath func(string) string
	// keepDomain says whether a cookie's Domain stays; nil keeps all.
	keepDomain func(domain string) bool
}

// header rewrites Location, Content-Location, Refresh and Set-Cookie in place.
func (w rewriter) header(h http.Header) {
	for _, name := range []string{"Location", "Content-Location"} {
		for i, v := range h[name] {
			h[name][i] = w.reference(v)
		}
	}
	for i, v := range h["Refresh"] {
		h["Refresh"][i] = w.refresh(v)
	}
	for i, v := range h["Set-Cookie"] {
		h["Set-Cookie"][i] = w.cookie(v)
	}
}

// refresh rewrites the URL in `5; url=/x`, `5;URL='/x'` or `5, /x`; a value without one reloads the page
// itself and stays.
func (w rewriter) refresh(value string) string {
	i := strings.IndexAny(value, ";,")
	if i < 0 {
		return value
	}
	space := func(s string) int { return len(s) - len(strings.TrimLeft(s, " \t")) }
	at := i + 1
	at += space(value[at:])
	if len(value) >= at+3 && strings.EqualFold(value[at:at+3], "url") {
		if eq := at + 3 + space(value[at+3:]); eq < len(value) && value[eq] == '=' {
			at = eq + 1
			at += space(value[at:])
		}
	}
	end := len(value)
	if at < end && (value[at] == '\'' || value[at] == '"') {
		if quote := strings.IndexByte(value[at+1:], value[at]); quote >= 0 {
			end = at + 1 + quote
		}
		at++
	}
	if at >= end {
		return value
	}
	return value[:at] + w.reference(value[at:end]) + value[end:]
}

// cookie rewrites Path and Domain of a Set-Cookie and leaves the rest as it is.
func (w rewriter) cookie(value string) string {
	parts := strings.Split(value, ";")
	kept := parts[:1]
	for _, part := range parts[1:] {
		name, v, _ := strings.Cut(part, "=")
		v = strings.TrimSpace(v)
		switch name := strings.TrimSpace(name); {
		case strings.EqualFold(name, "Path") && strings.HasPrefix(v, "/"):
			part = part[:strings.IndexByte(part, '=')+1] + w.cookiePath(v)
		case strings.EqualFold(name, "Domain") && w.keepDomain != nil && !w.keepDomain(v):
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, ";")
}

func (f pathForm) rewriter() rewriter {
	return rewriter{
		reference:  f.reference,
		cookiePath: func(path string) string { return f.prefix(f.to.port) + path },
		keepDomain: f.keepDomain,
	}
}

// keepDomain says whether a cookie's Domain stays. One that means the guest itself goes, since the client
// knows no such host and would drop the cookie; and one that covers the public name goes, since other
// sandboxes have names beside this one: without a Domain a cookie is its own host's alone.
func (f pathForm) keepDomain(domain string) bool {
	domain = strings.ToLower(strings.TrimPrefix(domain, "."))
	public := strings.ToLower(f.public)
	if host, _, err := net.SplitHostPort(public); err == nil {
		public = host
	}
	return !f.isOwn(domain) && !sameHost(domain, f.mask, "") && domain != public && !strings.HasSuffix(public, "."+domain)
}

func (f nameForm) rewriter() rewriter {
	return rewriter{reference: f.reference, cookiePath: func(path string) string {
		if port, tail, ok := f.takeOff(path); ok && port == f.to.port {
			return tail
		}
		return path
	}}
}

// hasReferences says whether there is anything to rewrite; most answers have nothing.
func hasReferences(h http.Header) bool {
	return h["Location"] != nil || h["Set-Cookie"] != nil || h["Content-Location"] != nil || h["Refresh"] != nil
}
