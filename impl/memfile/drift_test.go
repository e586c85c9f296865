package memfile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// drift runs cycles of work, pause and restore, and compares the layers, flat files and merges with plain
// memory after each. It returns the number of the first cycle that went wrong.
func drift(ctx context.Context, r *rand.Rand, dir string, cycles int, describe describer) (int, error) {
	m := newMachine(r, dir, 1027, describe)
	flat := filepath.Join(dir, "memory.flat")
	var base string // merged of the first n layers, and not yet in their place
	var n, updates, merges int
	for cycle := range cycles {
		m.run()
		if err := m.pause(ctx); err != nil {
			return cycle, fmt.Errorf("pause: %w", err)
		}
		// A merge of an earlier pause is done now, and a diff has come upon what it merged.
		if base != "" {
			if err := m.replace(base, n); err != nil {
				return cycle, fmt.Errorf("replace: %w", err)
			}
			base = ""
		}
		if err := m.check(ctx); err != nil {
			return cycle, err
		}
		if r.IntN(10) == 0 {
			if err := removeAny(flat); err != nil {
				return cycle, err
			}
		}
		if r.IntN(3) > 0 {
			done, err := m.flatten(ctx, flat)
			if err != nil {
				return cycle, fmt.Errorf("flatten: %w", err)
			}
			if done.Updated {
				updates++
			}
		}
		if len(m.layers) > MaxGenerations || r.IntN(20) == 0 {
			var err error
			n = len(m.layers)
			if base, err = m.merge(ctx, n); err != nil {
				return cycle, fmt.Errorf("merge: %w", err)
			}
			merges++
		}
	}
	if cycles >= 100 && (updates < cycles/4 || merges < cycles/(2*MaxGenerations)) {
		return cycles, fmt.Errorf("%d updates of the flat file and %d merges prove nothing", updates, merges)
	}
	return cycles, nil
}

func TestS06_200CyclesWithoutAVM(t *testing.T) {
	cycles := 200
	if os.Getenv(wantReflinks) != "" {
		cycles = 30 // on the second file system, where each sync of the first one is two
	}
	cycle, err := drift(t.Context(), seeded(t), t.TempDir(), cycles, Describe)
	require.NoError(t, err, "cycle %d", cycle)
}

// describeByOldRule takes all-zero data for "unchanged", as a version once did whose guests then found the
// old content in pages that they had zeroed.
func describeByOldRule(ctx context.Context, data *os.File, parent *Header) (*Header, error) {
	h, err := Describe(ctx, data, parent)
	if err != nil {
		return nil, err
	}
	var changed []Extent
	for _, e := range h.Extents {
		b := make([]byte, e.Length)
		if err := readFull(data, b, e.Offset); err != nil {
			return nil, err
		}
		for _, part := range notZero(b) {
			changed = append(changed, Extent{e.Offset + part.Offset, part.Length})
		}
	}
	h.Extents = changed
	p := newPieces(changed)
	h.Checksums = make([]uint32, p.count())
	return h, p.sums(ctx, data, func(n int, _ Extent, sum uint32) error {
		h.Checksums[n] = sum
		return nil
	})
}

func TestS07_TheOldRuleIsCaughtWithinThreeCycles(t *testing.T) {
	cycle, err := drift(t.Context(), seeded(t), t.TempDir(), 3, describeByOldRule)
	require.ErrorContains(t, err, "differs from the memory", "cycle %d", cycle)
	assert.Less(t, cycle, 3)
}

func TestS07_AZeroedPageIsChanged(t *testing.T) {
	m := newMachine(seeded(t), t.TempDir(), 16, Describe)
	copy(m.touch(5, 1), "old content")
	require.NoError(t, m.pause(t.Context()))
	clear(m.touch(5, 1))
	require.NoError(t, m.pause(t.Context()))
	require.NoError(t, m.check(t.Context()))
	h, err := ReadHeader(m.layers[1])
	require.NoError(t, err)
	assert.Equal(t, []Extent{{5 * PageSize, PageSize}}, h.Extents, "zeroed is changed, and nothing else is")

	// In a base it is a hole after a merge.
	merged, err := m.merge(t.Context(), 2)
	require.NoError(t, err)
	base, err := ReadHeader(merged)
	require.NoError(t, err)
	assert.Empty(t, base.Extents)
	assert.Equal(t, h.ID, base.ID, "the merged base stands for the last layer's content")
	assert.Equal(t, h.Generation, base.Generation)
	assert.True(t, base.IsBase())
}
