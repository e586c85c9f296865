package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// keyPrefix is what E2B's SDKs up to 2.45 check before they send a key.
	keyPrefix = "e2b_"
	// keyBytes is 256 bits of randomness. A key of that size cannot be guessed, so one round of SHA-256
	// hides it as well as a slow password hash would, without the cost on every request.
	keyBytes = 32
)

// NewAPIKey makes a key: "e2b_" and 64 hex digits. It is the only time that the key is seen; AddKey stores
// a hash.
func NewAPIKey() string {
	b := make([]byte, keyBytes)
	_, _ = rand.Read(b) // never fails; it ends the program where the kernel has no randomness
	return keyPrefix + hex.EncodeToString(b)
}

// AddKey makes key valid. name says what it is for. A key that is valid already stays as it is.
func (s *Store) AddKey(ctx context.Context, name, key string) error {
	digits, ok := strings.CutPrefix(key, keyPrefix)
	if _, err := hex.DecodeString(digits); !ok || err != nil || len(digits) < keyBytes {
		return fmt.Errorf("an API key must be %q and %d or more hex digits", keyPrefix, keyBytes)
	}
	_, err := s.write.ExecContext(ctx, `INSERT INTO api_keys (hash, name, created_at) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING`,
		hashKey(key), name, time.Now().UnixNano())
	if err != nil {
		return fmt.Errorf("store API key %q: %w", name, err)
	}
	return nil
}

// CheckKey returns the name that key was stored with, or ErrNotFound. The time it takes says nothing of
// stored keys: what is compared are hashes, which a caller cannot steer.
func (s *Store) CheckKey(ctx context.Context, key string) (string, error) {
	var name string
	err := s.read.QueryRowContext(ctx, `SELECT name FROM api_keys WHERE hash = $1`, hashKey(key)).Scan(&name)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("API key: %w", ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("look up API key: %w", err)
	}
	return name, nil
}

func hashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}
