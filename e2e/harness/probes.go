package harness

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// probes keeps the verdicts of the first probe of the VMMs for the later starts of this test binary. Each agent
// gets a copy: an agent that starts removes what it finds of unfinished probes.
var probes = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "wrenn-e2e-probes-") })

// knowProbes gives an agent that keeps its files in dir the verdicts of earlier ones.
func knowProbes(tb testing.TB, dir string) {
	tb.Helper()
	cache, err := probes()
	require.NoError(tb, err)
	copyVerdicts(tb, cache, filepath.Join(dir, "probes"))
}

// keepProbes keeps the verdicts of an agent that serves.
func keepProbes(tb testing.TB, dir string) {
	tb.Helper()
	cache, err := probes()
	require.NoError(tb, err)
	copyVerdicts(tb, filepath.Join(dir, "probes"), cache)
}

func copyVerdicts(tb testing.TB, from, to string) {
	tb.Helper()
	require.NoError(tb, os.MkdirAll(to, 0o700))
	found, err := os.ReadDir(from)
	require.NoError(tb, err)
	for _, e := range found {
		if !e.Type().IsRegular() || e.Name()[0] == '.' {
			continue
		}
		verdict, err := os.ReadFile(filepath.Join(from, e.Name()))
		require.NoError(tb, err)
		// Others may do the same at this moment.
		temporary, err := os.CreateTemp(to, ".verdict-*")
		require.NoError(tb, err)
		_, err = temporary.Write(verdict)
		require.NoError(tb, err)
		require.NoError(tb, temporary.Close())
		require.NoError(tb, os.Rename(temporary.Name(), filepath.Join(to, e.Name())))
	}
}
