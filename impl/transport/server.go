package transport

import (
	"crypto/sha256"
	"crypto/subtle"
	"log"
	"net/http"
	"time"

	"wrenn/impl/transport/hopserver"
)

const (
	// ReadHeaderTimeout is how long a client may take to send a request's header; beyond it the
	// connection is closed, so that a thousand slow ones cost nothing.
	ReadHeaderTimeout = 10 * time.Second

	// IdleTimeout is how long a connection may rest between two requests. It is 10 s above what our
	// transports keep (610 s), so the client side is the one that closes.
	IdleTimeout = 620 * time.Second

	// apiHeaderBytes holds a token, a few fixed headers and a long query with room to spare.
	apiHeaderBytes = 64 << 10

	// proxyHeaderBytes is Go's own default: cookies of users' programs may be large, and it is the
	// program behind the port that decides what is too much.
	proxyHeaderBytes = 1 << 20
)

// NewServer returns a server of our own contracts, REST and RPC. It has no read or write timeout, since bodies and streams
// live as long as they need, and offers HTTP/1.1 only, with TLS too. The caller sets ErrorLog and shuts it down.
func NewServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: ReadHeaderTimeout,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    apiHeaderBytes,
		Protocols:         http1(),
		ConnContext:       accepted([]option{giveUp, nimbly}), // long answers are terminals
	}
}

// NewProxyServer returns a server that carries users' own traffic to their ports. The caller sets ErrorLog and shuts it down.
func NewProxyServer(handler http.Handler) *hopserver.Server {
	return &hopserver.Server{
		Handler:        handler,
		HeaderTimeout:  ReadHeaderTimeout,
		IdleTimeout:    IdleTimeout,
		MaxHeaderBytes: proxyHeaderBytes,
		ConnContext:    accepted(nil),
		ErrorLog:       log.Default(),
	}
}

// AgentTokenHeader carries the control plane's credential on every request to an agent, RPC and proxied
// traffic alike. It is not Authorization, because a proxied request's own Authorization belongs to the
// guest (it names the user there) and must arrive untouched.
const AgentTokenHeader = "Wrenn-Agent-Token" //nolint:gosec // a name, not a credential

// RequireAgentToken lets through to next only requests that carry token in AgentTokenHeader, compared in
// constant time; others get 401. With an empty token nobody passes.
func RequireAgentToken(token string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get(AgentTokenHeader)))
		if token == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"code":401,"message":"the agent token is missing or wrong"}`))
			return
		}
		next.ServeHTTP(w, r)
	})
}
