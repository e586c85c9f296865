package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"wrenn/impl/agentclient"
	"wrenn/impl/safename"
	"wrenn/impl/store"
	"wrenn/impl/transport"
)

// maxBody bounds a request's body: all limits of the contract together stay under it, and everything is
// read into memory.
const maxBody = 1 << 20

// server serves the REST API.
type server struct {
	cfg      Config
	store    *store.Store
	agents   []*agentclient.Client
	contract *contract
	// killing holds the ids of sandboxes that a request is destroying, which reconciling leaves to it: if
	// both asked the agent, the one that came second would be told that there is no such sandbox.
	killing sync.Map
	turns   turns

	// life ends with the control plane, and sessions with it; streams carries them and all other traffic to
	// guests' daemons.
	life     context.Context //nolint:containedctx // a WebSocket outlives its request's context
	sessions sync.WaitGroup
	streams  *transport.Direct
}

func newServer(ctx context.Context, cfg Config, st *store.Store, agents []*agentclient.Client) (*server, error) {
	s := &server{cfg: cfg, store: st, agents: agents, life: ctx, streams: transport.NewStreamProxyTransport()}
	var err error
	s.contract, err = newContract(ctx, map[string]handler{
		"health":          s.health,
		"createV1":        s.create(defaultTimeoutV1),
		"createV2":        s.create(defaultTimeoutV2),
		"listV1":          s.listV1,
		"listV2":          s.listV2,
		"get":             s.get,
		"kill":            s.kill,
		"timeout":         s.timeout,
		"refresh":         s.refresh,
		"connectV1":       s.connect(defaultTimeoutV1),
		"connectV2":       s.connect(defaultTimeoutV2),
		"resume":          s.resume,
		"pause":           s.pause,
		"fork":            s.fork,
		"snapshot":        s.snapshot,
		"listSnapshots":   s.listSnapshots,
		"deleteTemplate":  s.deleteTemplate,
		"network":         s.setNetwork,
		"logs":            s.logs,
		"pty":             s.session(true),
		"exec":            s.session(false),
		"templates":       s.templates,
		"templateByAlias": s.templateByAlias,
	})
	return s, err
}

// agent returns the client of the agent of that name, or nil if it has left the configuration.
func (s *server) agent(name string) *agentclient.Client {
	for _, a := range s.agents {
		if a.Name() == name {
			return a
		}
	}
	return nil
}

// ServeHTTP serves one request: key, contract, handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if allowOrigin(w, r) {
		return
	}
	if err := s.serve(w, r); err != nil {
		s.answerError(w, r, err)
	}
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) error {
	op, params, err := s.contract.find(r)
	if err != nil || !op.open {
		// An unknown path needs a key too: without one there is nothing to learn here.
		if denied := s.authenticate(r); denied != nil {
			return denied
		}
	}
	if err != nil {
		return err
	}
	for name, value := range params {
		r.SetPathValue(name, value)
	}
	if id, ok := params["sandboxID"]; ok {
		if err := safename.CheckSandboxID("sandboxID", id); err != nil {
			return refuse(http.StatusBadRequest, "%v", err)
		}
	}
	if err := readBody(w, r); err != nil {
		return err
	}
	if err := op.check(r, params); err != nil {
		return err
	}
	return op.handle(w, r)
}

// allowOrigin lets pages of any origin call the API and read its paging headers: the key is sent by the
// page itself, never by the browser, so a foreign page has no more rights than any other client. It returns
// true if it answered a preflight.
func allowOrigin(w http.ResponseWriter, r *http.Request) bool {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Access-Control-Expose-Headers", headerNextToken+", "+headerTotalRunning+", "+headerServerTiming)
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	w.Header().Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
	w.Header().Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
	w.Header().Set("Access-Control-Max-Age", "7200")
	w.WriteHeader(http.StatusNoContent)
	return true
}

// readBody reads the whole body, whatever its length is said to be (SDKs send chunks), and puts it back as
// JSON for those who come after.
func readBody(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return refuse(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", maxBody)
	case err != nil:
		return refuse(http.StatusBadRequest, "the body could not be read to its end")
	}
	body = bytes.TrimSpace(body)
	if media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); len(body) > 0 && media != "" && !strings.EqualFold(strings.TrimSpace(media), "application/json") {
		return refuse(http.StatusBadRequest, "header Content-Type is %.100q, it must be application/json", media)
	}
	if len(body) > 0 && !json.Valid(body) {
		return refuse(http.StatusBadRequest, "the body is not valid JSON")
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Type", "application/json")
	return nil
}

// decode reads the checked body into v; an empty body leaves v as it is.
func decode(r *http.Request, v any) error {
	err := json.NewDecoder(r.Body).Decode(v)
	if err != nil && !errors.Is(err, io.EOF) {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	return nil
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}
