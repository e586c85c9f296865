package controlplane

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"wrenn/impl/envdclient"
	"wrenn/impl/portproxy"
	"wrenn/impl/session"
	"wrenn/impl/transport"
)

// keyProtocol opens the subprotocol by which a page in a browser, which can set no header of a WebSocket,
// sends its API key. A query would end up in logs and histories; this header does not, and the answer names
// session.Protocol alone.
const keyProtocol = session.Protocol + ".key."

// isWebSocket says whether r asks for one.
func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// protocolKey returns the key among the subprotocols that a WebSocket asks for, or nothing.
func protocolKey(r *http.Request) string {
	if !isWebSocket(r) {
		return ""
	}
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			if key, ok := strings.CutPrefix(strings.TrimSpace(name), keyProtocol); ok {
				return key
			}
		}
	}
	return ""
}

// session serves a WebSocket that talks to a program in a sandbox.
func (s *server) session(terminal bool) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if !isWebSocket(r) {
			w.Header().Set("Upgrade", "websocket")
			return refuse(http.StatusUpgradeRequired, "this is a WebSocket: ask for an upgrade")
		}
		id := r.PathValue("sandboxID")
		guest, err := s.guest(r, id)
		if err != nil {
			return err
		}
		s.sessions.Add(1)
		defer s.sessions.Done()
		session.Serve(s.life, w, r, session.Config{
			Guest: guest, Terminal: terminal, Clocks: s.cfg.Sessions, Logger: s.cfg.Logger.With("sandbox", id),
			Sent: transport.PreferLatency(r).Sent, Room: transport.RoomOf(r),
		})
		return nil
	}
}

// guest returns a client of a running sandbox's daemon, which goes over the STREAMS plane, as the sandbox
// proxy's traffic to the daemon's port does.
func (s *server) guest(r *http.Request, id string) (*envdclient.Client, error) {
	target, err := s.lookup(r.Context(), id)
	switch {
	case errors.Is(err, portproxy.ErrNotFound):
		return nil, notFound(id)
	case errors.Is(err, portproxy.ErrTransition):
		return nil, refuse(http.StatusConflict, "the sandbox is changing its state, try again")
	case errors.Is(err, portproxy.ErrUnreachable):
		return nil, refuse(http.StatusServiceUnavailable, "the host of the sandbox cannot be reached, try again")
	case err != nil:
		return nil, err
	}
	return envdclient.New(envdclient.Config{
		BaseURL:     "http://localhost:" + strconv.Itoa(portproxy.EnvdPort),
		HTTPClient:  &http.Client{Transport: portproxy.NewDaemonTransport(s.streams, target, id)},
		AccessToken: s.envdToken(id),
	})
}
