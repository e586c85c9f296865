package envd

import (
	"math"
	"net/http"

	"connectrpc.com/connect"

	"wrenn/impl/envd/answer"
	"wrenn/impl/envd/process"
	"wrenn/impl/envd/stream"
	"wrenn/proto/gen/envd/filesystem/filesystemconnect"
	"wrenn/proto/gen/envd/process/processconnect"
)

const (
	// maxMessage bounds one RPC message: input is sent whole, and clients send files elsewhere.
	maxMessage = 16 << 20
	// compressFrom is the size from which a reply is compressed; below it, gzip costs more than it saves.
	compressFrom = 1 << 10
)

// routes is the whole of the daemon's interface, behind the token.
func (d *daemon) routes() http.Handler {
	mux := http.NewServeMux()
	open := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, h) }
	locked := func(pattern string, h http.Handler) { mux.Handle(pattern, d.withToken(h)) }

	open("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	})
	open("POST /init", d.postInit)
	locked("POST /freeze", http.HandlerFunc(d.postFreeze))
	locked("POST /unfreeze", http.HandlerFunc(d.postUnfreeze))
	locked("GET /metrics", http.HandlerFunc(d.getMetrics))
	locked("GET /envs", http.HandlerFunc(d.getEnvs))
	bounded := connect.WithReadMaxBytes(maxMessage)
	// Output is not compressed: it would cost the guest's processor and every keystroke's echo some time.
	locked(processconnect.NewProcessHandler(process.NewHandler(d.processes, d.settings), bounded, connect.WithCompressMinBytes(math.MaxInt)))
	locked(filesystemconnect.NewFilesystemHandler(d.tree, bounded, connect.WithCompressMinBytes(compressFrom)))
	// These two check a token or a signature themselves.
	open("GET /files", d.files.Get)
	open("POST /files", d.files.Post)
	locked("POST /files/compose", http.HandlerFunc(d.files.Compose))
	locked("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer.Error(w, http.StatusNotFound, "no such route: "+r.Method+" "+r.URL.Path)
	}))
	return withCORS(markStreams(stream.Middleware(mux)))
}

// tokenHeader carries the access token.
const tokenHeader = "X-Access-Token"

// withToken refuses requests that do not carry the token, once one is set.
func (d *daemon) withToken(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.settings.Allows(r.Header.Get(tokenHeader)) {
			answer.Error(w, http.StatusUnauthorized, "missing or wrong access token")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// withCORS lets pages of any origin use the daemon: the token, not the origin, is what protects it.
func withCORS(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", "*")
		if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
		// The wildcard does not cover Authorization, so what is asked for is what is allowed.
		if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
			h.Set("Access-Control-Allow-Headers", asked)
		}
		h.Set("Access-Control-Max-Age", "7200") // seconds: the most that browsers honour
		w.WriteHeader(http.StatusNoContent)
	})
}
