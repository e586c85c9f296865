package controlplane

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"wrenn/impl/store"
)

// authenticate returns nil if the request bears a valid key, in X-API-KEY, as a bearer token or, for a
// WebSocket, as a subprotocol.
func (s *server) authenticate(r *http.Request) error {
	key := r.Header.Get("X-Api-Key")
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); key == "" && ok && strings.EqualFold(scheme, "bearer") {
		key = strings.TrimSpace(token)
	}
	if key == "" {
		key = protocolKey(r)
	}
	if key == "" {
		return refuse(http.StatusUnauthorized, "an API key is needed, in the header X-API-KEY")
	}
	_, err := s.store.CheckKey(r.Context(), key)
	if errors.Is(err, store.ErrNotFound) {
		return refuse(http.StatusUnauthorized, "the API key is not valid")
	}
	return err
}

// envdToken is what the sandbox's daemon asks of its callers. It is derived, so that it need not be stored
// and stays the same for as long as the sandbox lives.
func (s *server) envdToken(id string) string { return s.derive(id) }

// trafficToken opens the sandbox's other ports where they are not public. The prefix cannot be part of an id,
// so it never equals any sandbox's envdToken.
func (s *server) trafficToken(id string) string { return s.derive("traffic:" + id) }

func (s *server) derive(what string) string {
	mac := hmac.New(sha256.New, s.cfg.Secret)
	mac.Write([]byte(what))
	return hex.EncodeToString(mac.Sum(nil))
}
