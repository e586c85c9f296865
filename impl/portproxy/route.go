package portproxy

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"wrenn/impl/safename"
)

// route is where a request wants to go.
type route struct {
	id   string
	port uint16
}

// Headers that name a sandbox and a port where the host name cannot (one base URL for all sandboxes).
const (
	headerID   = "E2b-Sandbox-Id"
	headerPort = "E2b-Sandbox-Port"
)

// headerTraffic carries the token of a sandbox whose ports are not public.
const headerTraffic = "E2b-Traffic-Access-Token"

// EnvdPort is the guest daemon's port. Its traffic takes the STREAMS plane, since terminals run over it.
const EnvdPort = 49983

// controlRoutes are the guest daemon's paths that only the agent may use; it talks to the guest directly.
var controlRoutes = []string{"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"}

// edgeRoute finds the route of a request at the public door: by host name where its first label is
// {port}-{id}, with anything after a second dash ignored, else by the two headers. The host name wins,
// because a page served under it must not be able to address another sandbox by a header.
func edgeRoute(r *http.Request) (route, error) {
	if r.Method == http.MethodConnect {
		return route{}, errors.New("method CONNECT is not for a sandbox's port")
	}
	if id, port, ok := nameLabel(r.Host); ok {
		return newRoute("host name", id, port)
	}
	id, port := r.Header.Get(headerID), r.Header.Get(headerPort)
	switch {
	case id == "" && port == "":
		return route{}, fmt.Errorf("host %.100q must have the form {port}-{sandbox}.{domain}, or the headers %s and %s must say where to go",
			r.Host, headerID, headerPort)
	case id == "":
		return route{}, errors.New("header " + headerID + " is missing")
	case port == "":
		return route{}, errors.New("header " + headerPort + " is missing")
	}
	return newRoute("header "+headerID, id, port)
}

// nameLabel splits the first label of a Host header into sandbox and port, if it has their form.
func nameLabel(host string) (id, port string, ok bool) {
	if i := strings.IndexAny(host, ".:"); i >= 0 {
		host = host[:i]
	}
	port, rest, ok := strings.Cut(host, "-")
	if !ok || !digits(port) {
		return "", "", false
	}
	id, _, _ = strings.Cut(strings.ToLower(rest), "-")
	return id, port, true
}

// pathPrefix opens every path of the agent's proxy.
const pathPrefix = "/proxy/"

// Path returns where an agent's proxy has a sandbox's port; what follows it is the port's own path.
func Path(id string, port uint16) string {
	return pathPrefix + id + "/" + strconv.Itoa(int(port))
}

// pathRoute takes /proxy/{id}/{port} off target, a request target as it came over the wire, and returns
// what follows it, byte for byte.
func pathRoute(target string) (to route, rest string, err error) {
	after, ok := strings.CutPrefix(target, pathPrefix)
	if !ok {
		return route{}, "", fmt.Errorf("path must start with %s{sandbox}/{port}", pathPrefix)
	}
	end := strings.IndexByte(after, '?')
	if end < 0 {
		end = len(after)
	}
	id, portEtc, ok := strings.Cut(after[:end], "/")
	if !ok {
		return route{}, "", fmt.Errorf("path must start with %s{sandbox}/{port}", pathPrefix)
	}
	port, _, _ := strings.Cut(portEtc, "/")
	to, err = newRoute("path", id, port)
	rest = after[len(id)+1+len(port):]
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return to, rest, err
}

func newRoute(source, id, port string) (route, error) {
	if err := safename.CheckSandboxID(source, id); err != nil {
		return route{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || !digits(port) || port[0] == '0' {
		return route{}, fmt.Errorf("%s: port %.20q must be a number from 1 to 65535 without leading zeros", source, port)
	}
	return route{id: id, port: uint16(n)}, nil
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// forbidden says whether decoded, a decoded URL path, leads to one of the guest daemon's control routes
// once it is cleaned as a server would clean it.
func (to route) forbidden(decoded string) bool {
	return to.port == EnvdPort && slices.Contains(controlRoutes, path.Clean("/"+decoded))
}

// isStream says whether decoded, a decoded URL path, is one of the daemon's calls, terminals among them, and not
// one of users' ports nor the daemon's way to move whole files.
func (to route) isStream(decoded string) bool {
	return to.port == EnvdPort && decoded != "/files"
}
