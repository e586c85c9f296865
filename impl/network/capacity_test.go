package network

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// available is MemAvailable in KiB.
func available(t *testing.T) int {
	t.Helper()
	content, err := os.ReadFile("/proc/meminfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			require.NoError(t, err)
			return n
		}
	}
	t.Fatal("no MemAvailable")
	return 0
}

// nftRules counts the rules and sets of all families in the host's own namespace, whoever wrote them.
func nftRules(t *testing.T) int {
	t.Helper()
	conn, err := nftables.New()
	require.NoError(t, err)
	chains, err := conn.ListChains()
	require.NoError(t, err)
	n := 0
	for _, c := range chains {
		found, err := conn.GetRules(c.Table, c)
		require.NoError(t, err)
		n += len(found)
	}
	tables, err := conn.ListTables()
	require.NoError(t, err)
	for _, table := range tables {
		sets, err := conn.GetSets(table)
		require.NoError(t, err)
		n += len(sets)
	}
	return n
}

// TestN10_TheThousandthNetworkCostsWhatTheFirstDid makes as many as a minute allows, up to a number that
// shows any growth.
func TestN10_TheThousandthNetworkCostsWhatTheFirstDid(t *testing.T) {
	need.Short(t, "it makes networks for up to a minute")
	const least, most, edge = 500, 2000, 100
	h := setUp(t)
	before, rulesBefore, nftBefore, memory := census(t), rules(t), nftRules(t), available(t)
	var took []time.Duration
	create := func() {
		began := time.Now()
		require.NoError(t, h.CreateNetwork(t.Context(), Slot(len(took)+1), Policy{AllowInternet: true}))
		took = append(took, time.Since(began))
	}
	for start := time.Now(); len(took) < most && (time.Since(start) < time.Minute || len(took) < least); {
		create()
	}
	n := len(took)
	each := (memory - available(t)) / n
	assert.Equal(t, rulesBefore, rules(t))
	assert.Equal(t, nftBefore, nftRules(t))

	began := time.Now()
	cleared, err := h.CleanupStaleNamespaces(t.Context(), newAllocator(t, MaxSlot))
	require.NoError(t, err)
	assert.Len(t, cleared, n)
	removal := time.Since(began)
	assert.Equal(t, before, census(t))

	// The load on the machine may have changed since the first: what the same costs now on an empty host counts too.
	for range edge {
		create()
	}
	_, err = h.CleanupStaleNamespaces(t.Context(), newAllocator(t, MaxSlot))
	require.NoError(t, err)
	first, last, after := median(took[:edge]), median(took[n-edge:n]), median(took[n:])
	t.Logf("%d networks, some %d KiB each: p50 of the first %d %v, of the last %v, of as many on the host emptied again %v; all removed in %v",
		n, each, edge, first, last, after, removal)
	assert.LessOrEqual(t, last, 2*max(first, after))
}

func median(took []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(took))[len(took)/2]
}
