package portproxy

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// pathForm turns the references in a guest's answer into the path form: whatever leads to one of the
// sandbox's own ports comes to lie below /proxy/{sandbox}/{port}. Who comes to an agent by path is answered in this form;
// for who comes by name nameForm takes it off again, so that a path of the guest's that happens to look like the form
// survives.
type pathForm struct {
	to route
	// public is the host (with :port where it was given) that the client came by.
	public string
	// mask is the Host that the guest sees instead of public, or empty.
	mask string
	// own are the guest's addresses.
	own []netip.Addr
	// base is the path that was asked for, as the guest saw it.
	base string
}

// GuestAddr is the address that every guest knows itself by: a redirect to it is one to the sandbox.
var GuestAddr = netip.AddrFrom4([4]byte{169, 254, 0, 21})

// newPathForm returns the form of references in the answer to out, a request as it went to a guest, which may have other
// addresses beside GuestAddr.
func newPathForm(to route, out *http.Request, others ...netip.Addr) pathForm {
	f := pathForm{to: to, public: out.Header.Get("X-Forwarded-Host"), own: append(others, GuestAddr), base: out.URL.Opaque}
	if f.base == "" {
		f.base = out.URL.RequestURI()
	}
	if f.public == "" {
		f.public = out.Host
	} else if f.public != out.Host {
		f.mask = out.Host
	}
	return f
}

func (f pathForm) prefix(port uint16) string {
	return pathPrefix + f.to.id + "/" + strconv.Itoa(int(port))
}

// reference rewrites one URL reference. What leads elsewhere, or is right as it is, comes back unchanged.
func (f pathForm) reference(ref string) string {
	authority, rest, ok := splitReference(ref)
	switch {
	case !ok:
		return ref
	case authority == "" && strings.HasPrefix(rest, "/"):
		return f.prefix(f.to.port) + below(rest)
	case authority == "":
		return f.relative(rest)
	}
	scheme, host := splitAuthority(authority)
	if sameHost(host, f.public, scheme) {
		return authority + f.prefix(f.to.port) + below(rest)
	}
	if sameHost(host, f.mask, scheme) {
		return f.prefix(f.to.port) + below(rest)
	}
	name, port := splitHost(host, scheme)
	if port != 0 && (f.isOwn(name) || port == f.to.port && f.isPublicName(name)) {
		return f.prefix(port) + below(rest)
	}
	return ref
}

// relative handles a reference that is resolved against the path asked for. It is right as it is unless it
// climbs out of the root, where a client stops at the root and not at the prefix.
func (f pathForm) relative(ref string) string {
	path, _ := cutPath(ref)
	base, _ := cutPath(f.base)
	merged := base[:strings.LastIndexByte(base, '/')+1] + ref
	if path == "" || !climbs(merged) {
		return ref
	}
	return f.prefix(f.to.port) + below(merged)
}

// isPublicName says whether name is public's, whatever its port: servers that know the name from Host and
// the port from their socket, as nginx does, put the two together.
func (f pathForm) isPublicName(name string) bool {
	public, _ := splitHost(f.public, "")
	return strings.EqualFold(name, public)
}

// isOwn says whether a host name means the guest itself: loopback, or one of its addresses.
func (f pathForm) isOwn(name string) bool {
	if strings.EqualFold(name, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && (addr.IsLoopback() || addr.IsUnspecified() || slices.Contains(f.own, addr.Unmap()))
}

// nameForm takes the path form off again, for a client that came by name or by headers.
type nameForm struct {
	to route
	// host is the Host that the client sent; byName says whether its first label is {port}-{sandbox}.
	host   string
	byName bool
}

// reference rewrites one URL reference.
func (f nameForm) reference(ref string) string {
	authority, rest, ok := splitReference(ref)
	if !ok {
		return ref
	}
	if authority != "" {
		if scheme, host := splitAuthority(authority); !sameHost(host, f.host, scheme) {
			return ref
		}
	}
	port, tail, ok := f.takeOff(rest)
	switch {
	case !ok:
		return ref
	case port != f.to.port && f.byName:
		_, label, _ := strings.Cut(f.host, "-")
		return "//" + strconv.Itoa(int(port)) + "-" + label + tail
	case port != f.to.port:
		return "http://localhost:" + strconv.Itoa(int(port)) + tail // there is no name for it
	case authority == "" && len(tail) > 1 && isSlash(tail[1]): // would be taken for a host
		return "//" + f.host + tail
	}
	return authority + tail
}

// takeOff splits path into the port that its /proxy/{sandbox}/{port} names and what follows.
func (f nameForm) takeOff(path string) (port uint16, tail string, ok bool) {
	after, ok := strings.CutPrefix(path, pathPrefix+f.to.id+"/")
	if !ok {
		return 0, "", false
	}
	end := strings.IndexAny(after, "/?#")
	if end < 0 {
		end = len(after)
	}
	to, err := newRoute("path", f.to.id, after[:end])
	tail = after[end:]
	if !strings.HasPrefix(tail, "/") {
		tail = "/" + tail
	}
	return to.port, tail, err == nil
}

// splitReference splits ref into scheme and authority, with the slashes ("http://host", "//host" or ""),
// and the rest. It is not ok where the rest is no path (mailto:x, http:x).
func splitReference(ref string) (authority, rest string, ok bool) {
	begin := 0
	if colon := strings.IndexByte(ref, ':'); colon > 0 && !strings.ContainsAny(ref[:colon], "/?#") {
		begin = colon + 1
	}
	if !strings.HasPrefix(ref[begin:], "//") {
		return "", ref, begin == 0
	}
	end := strings.IndexAny(ref[begin+2:], `/\?#`)
	if end < 0 {
		return ref, "", true
	}
	return ref[:begin+2+end], ref[begin+2+end:], true
}

// splitAuthority splits "http://user@host:1" into "http" and "host:1".
func splitAuthority(authority string) (scheme, host string) {
	scheme, host, _ = strings.Cut(authority, "//")
	host = host[strings.LastIndexByte(host, '@')+1:]
	return strings.TrimSuffix(strings.ToLower(scheme), ":"), host
}

// splitHost splits "name:port". Without a port it is that of scheme; 0 means that there is none.
func splitHost(host, scheme string) (name string, port uint16) {
	name, text, err := net.SplitHostPort(host)
	if err != nil || text == "" {
		name, text = strings.TrimSuffix(host, ":"), "80"
		if scheme == "https" || scheme == "wss" {
			text = "443"
		}
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0
	}
	return strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"), uint16(n)
}

// sameHost says whether host, in a URL of scheme, is public, which came in a Host header: the port that
// scheme implies may be left out of either.
func sameHost(host, public, scheme string) bool {
	if host == "" || public == "" {
		return false
	}
	if strings.EqualFold(host, public) {
		return true
	}
	name, port := splitHost(host, scheme)
	publicName, publicPort := splitHost(public, scheme)
	return port != 0 && port == publicPort && strings.EqualFold(name, publicName)
}

// cutPath splits a path from the query or fragment behind it.
func cutPath(ref string) (path, tail string) {
	if i := strings.IndexAny(ref, "?#"); i >= 0 {
		return ref[:i], ref[i:]
	}
	return ref, ""
}

// below returns ref (a path, query and fragment) such that no client climbs out of the prefix that is put
// before it: as it is, unless it climbs above the root.
func below(ref string) string {
	path, tail := cutPath(ref)
	if path == "" {
		return "/" + tail
	}
	if !climbs(path) {
		return ref
	}
	var kept []string
	segments := splitSegments(path[1:])
	for i, s := range segments {
		last := i == len(segments)-1
		switch dots(s) {
		case 2:
			kept = kept[:max(len(kept)-1, 0)]
		case 0:
			kept = append(kept, s)
			continue
		}
		if last {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/") + tail
}

// climbs says whether ref's path has more ".." than segments before them, as a browser counts.
func climbs(ref string) bool {
	path, _ := cutPath(ref)
	if !strings.Contains(path, ".") && !strings.Contains(path, "%2") {
		return false
	}
	depth := 0
	for _, s := range splitSegments(strings.TrimPrefix(path, "/")) {
		switch dots(s) {
		case 0:
			depth++
		case 2:
			if depth--; depth < 0 {
				return true
			}
		}
	}
	return false
}

func splitSegments(path string) []string {
	return strings.Split(strings.ReplaceAll(path, `\`, "/"), "/")
}

func isSlash(c byte) bool { return c == '/' || c == '\\' }

// dots returns 1 for the segment "." and 2 for "..", however their dots are encoded, else 0.
func dots(segment string) int {
	if len(segment) == 0 || len(segment) > len("%2e%2e") {
		return 0
	}
	switch strings.ReplaceAll(strings.ToLower(segment), "%2e", ".") {
	case ".":
		return 1
	case "..":
		return 2
	}
	return 0
}
