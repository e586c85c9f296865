package cli

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/store"
)

// secrets are made at the first `wrenn up` in a directory and stay the same, so that keys handed out and
// sandboxes that run on stay usable.
type secrets struct {
	APIKey string `json:"apiKey"`
	// TokenSecret is what the sandboxes' tokens derive from.
	TokenSecret []byte `json:"tokenSecret"`
	// AgentToken is what the control plane shows the agent.
	AgentToken string `json:"agentToken"`
}

func loadSecrets(path string) (secrets, error) {
	var s secrets
	data, err := os.ReadFile(path)
	if err == nil {
		if err := json.Unmarshal(data, &s); err != nil {
			return s, fmt.Errorf("read %s: %w", path, err)
		}
		if s.APIKey == "" || len(s.TokenSecret) == 0 || s.AgentToken == "" {
			return s, fmt.Errorf("read %s: a secret is missing; move the file away to have new ones made", path)
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("read secrets: %w", err)
	}
	s = secrets{APIKey: store.NewAPIKey(), TokenSecret: random(), AgentToken: hex.EncodeToString(random())}
	if data, err = json.MarshalIndent(s, "", "\t"); err != nil {
		return s, fmt.Errorf("encode secrets: %w", err)
	}
	return s, atomicfile.Write(path, data, 0o600)
}

// random returns 256 bits, as many as the hash that uses them.
func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // crypto/rand.Read never fails
	return b
}
