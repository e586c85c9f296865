package sandboxtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/sandbox"
)

// Ground is the host as the lifecycle suite uses it. The parts of cfg are the host's, all or some.
func (h *Host) Ground(cfg sandbox.Config) Ground {
	return Ground{
		Config: cfg, Template: "base", Restart: h.Restart, Patience: 10 * time.Second,
		Crash:  func(t *testing.T, id string) { require.True(t, h.Crash(id)) },
		Census: func(*testing.T) []string { return h.Census() },
		Write:  func(t *testing.T, id, key, value string) { require.NoError(t, h.Write(id, key, value)) },
		Read: func(t *testing.T, id, key string) (string, string) {
			inMemory, onDisk, err := h.Read(id, key)
			require.NoError(t, err)
			return inMemory, onDisk
		},
		Self: func(t *testing.T, id string) Self {
			self, err := h.Self(id)
			require.NoError(t, err)
			return self
		},
		Check: func(t *testing.T) { assert.Empty(t, h.Broken()) },
	}
}
