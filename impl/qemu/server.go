package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// Version is the version of Firecracker whose behaviour is imitated.
const Version = "1.16.1"

// defaultBodyLimit is Firecracker's limit of a request's body in bytes (--http-api-max-payload-size).
const defaultBodyLimit = 51200

// ServeHTTP answers one call of Firecracker's API.
func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", "Firecracker API")
	h.Set("Connection", "keep-alive")
	h["Date"] = nil // Firecracker sends none
	if r.Method != http.MethodGet && r.Method != http.MethodPut && r.Method != http.MethodPatch {
		httpError(w, "Invalid HTTP Method.")
		return
	}
	if r.ContentLength > m.cfg.BodyLimit {
		// The body stays unread, so the connection cannot be used again.
		h.Set("Connection", "close")
		httpError(w, fmt.Sprintf("Request payload with size %d is larger than the limit of %d allowed by server.",
			r.ContentLength, m.cfg.BodyLimit))
		return
	}
	var body []byte
	if r.ContentLength > 0 {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			httpError(w, "Error while reading the request body.")
			return
		}
	} else if r.ContentLength < 0 {
		h.Set("Connection", "close") // a chunked body, which Firecracker does not decode
	}
	m.mu.Lock()
	answer, err := m.route(r.Method, r.URL.RequestURI(), body)
	m.mu.Unlock()
	m.reply(w, r, answer, err)
}

func (m *machine) reply(w http.ResponseWriter, r *http.Request, answer any, err error) {
	if err != nil {
		m.log.Info("call refused", "method", r.Method, "path", r.URL.Path, "fault", err.Error())
		writeJSON(w, http.StatusBadRequest, map[string]string{"fault_message": err.Error()})
		return
	}
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		status, raw = http.StatusInternalServerError, []byte(`{"fault_message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(raw) // a client that has gone away misses nothing
}

// httpError answers what is wrong with the request as such. Firecracker's text has a raw newline inside
// the JSON string, and so has this one.
func httpError(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = fmt.Fprintf(w, "{ \"error\": \"%s\nAll previous unanswered requests will be dropped.\" }", text)
}

// route finds what a call asks for. The path is taken as it came, without decoding.
func (m *machine) route(method, uri string, body []byte) (any, error) {
	tokens := strings.Split(strings.Trim(uri, "/"), "/")
	path, rest := tokens[0], tokens[1:]
	switch {
	case method == http.MethodGet && body != nil:
		return nil, faultf("GET request cannot have a body.")
	case method == http.MethodGet:
		return m.get(path, rest)
	case body == nil:
		return nil, faultf("Empty %s request.", method)
	case method == http.MethodPut:
		return nil, m.put(path, rest, body)
	}
	return nil, m.patch(path, rest, body)
}

func (m *machine) get(path string, rest []string) (any, error) {
	switch {
	case path == "":
		return map[string]string{"id": m.cfg.ID, "state": string(m.state), "vmm_version": Version, "app_name": "Firecracker"}, nil
	case path == "version":
		return map[string]string{"firecracker_version": Version}, nil
	case path == "machine-config":
		return m.machine, nil
	case path == "vm" && len(rest) > 0 && rest[0] == "config":
		return m.config(), nil
	}
	return nil, unknown(http.MethodGet, path)
}

func (m *machine) put(path string, rest []string, body []byte) error {
	switch path {
	case "actions":
		var a action
		return with(body, &a, func() error { return m.act(a.ActionType) })
	case "boot-source":
		var b bootSource
		return with(body, &b, func() error { return m.putBootSource(b) })
	case "drives":
		var d drive
		return withID(rest, body, &d, &d.DriveID, func() error { return m.putDrive(d) })
	case "entropy":
		var e entropy
		return with(body, &e, func() error { return m.putEntropy(e) })
	case "logger":
		var l loggerConfig
		return with(body, &l, func() error { return m.putLogger(l) })
	case "machine-config":
		var c machineConfig
		return with(body, &c, func() error { return m.putMachineConfig(c) })
	case "metrics":
		var c metricsConfig
		return with(body, &c, func() error { return m.putMetrics(c) })
	case "network-interfaces":
		var n nic
		return withID(rest, body, &n, &n.IfaceID, func() error { return m.putNIC(n) })
	case "snapshot":
		return m.putSnapshot(rest, body)
	}
	return unknown(http.MethodPut, path)
}

func (m *machine) putSnapshot(rest []string, body []byte) error {
	if len(rest) == 0 {
		return faultf("Missing snapshot operation type.")
	}
	switch rest[0] {
	case "create":
		var c snapshotCreate
		return with(body, &c, func() error { return m.createSnapshot(c) })
	case "load":
		var l snapshotLoad
		return with(body, &l, func() error { return m.loadSnapshot(l) })
	}
	return faultf("Invalid request method and/or path: PUT /snapshot/%s.", rest[0])
}

func (m *machine) patch(path string, rest []string, body []byte) error {
	switch path {
	case "drives":
		var p drivePatch
		return withID(rest, body, &p, &p.DriveID, func() error { return m.patchDrive(p) })
	case "machine-config":
		var p machinePatch
		return with(body, &p, func() error { return m.patchMachineConfig(p) })
	case "network-interfaces":
		var p nicPatch
		return withID(rest, body, &p, &p.IfaceID, func() error { return m.patchNIC(p) })
	case "vm":
		var s vmState
		return with(body, &s, func() error { return m.setState(s.State) })
	}
	return unknown(http.MethodPatch, path)
}

// unsupported are the calls of Firecracker that this stand-in knows and cannot serve.
var unsupported = []string{"balloon", "cpu-config", "hotplug", "mmds", "pmem", "serial", "vsock"}

func unknown(method, path string) error {
	for _, known := range unsupported {
		if path == known {
			return faultf("The requested operation is not supported: firecracker-qemu has no %s %s.", method, path)
		}
	}
	return faultf("Invalid request method and/or path: %s %s.", method, path)
}

// with decodes the body and does the call.
func with(body []byte, dst any, call func() error) error {
	if err := decode(body, dst); err != nil {
		return err
	}
	return call()
}

// withID does the same for a call that names one of several devices, in the path and in the body.
func withID(rest []string, body []byte, dst any, inBody *string, call func() error) error {
	if len(rest) == 0 || rest[0] == "" {
		return faultf("The ID cannot be empty.")
	}
	for _, c := range rest[0] {
		if c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return faultf("API Resource IDs can only contain alphanumeric characters and underscores.")
		}
	}
	if err := decode(body, dst); err != nil {
		return err
	}
	if rest[0] != *inBody {
		return faultf("The id from the path does not match the id from the body!")
	}
	return call()
}

// maxConnections is how many connections Firecracker's server keeps open.
const maxConnections = 10

// tooMany is what the next one is told.
const tooMany = "HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n" +
	`{ "error": "Too many open connections" }`

// limitedListener answers connections beyond maxConnections with 503 and closes them.
type limitedListener struct {
	net.Listener
	slots chan struct{}
}

func newLimitedListener(l net.Listener) *limitedListener {
	return &limitedListener{Listener: l, slots: make(chan struct{}, maxConnections)}
}

// Accept returns the next connection that there is room for.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_, writeErr := io.WriteString(conn, tooMany)
			_ = errors.Join(writeErr, conn.Close()) // the client is sent away in any case
		}
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close closes the connection and makes room for another.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
