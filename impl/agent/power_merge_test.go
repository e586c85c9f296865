package agent

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/snapshot"
)

// manyLayers is how many layers a snapshot may have before they are merged.
const manyLayers = 8

// TestS08_APowerFailureInAMergeChangesNothing cuts the power while the layers of a paused sandbox are merged, and
// while it is resumed and paused before that: whichever layers are found, they say the same. How
// file systems differ is the other test's business.
func TestS08_APowerFailureInAMergeChangesNothing(t *testing.T) {
	random := powerSeed(t)
	var past *life
	w := recordWrites(t, "ext4", func(mount string) {
		paperImage(t, mount)
		past = begin(t, mount, func(string) {}, random)
		defer past.leave()
		past.create()
		past.pause()
		for range manyLayers - 1 {
			past.resume()
			past.pause()
		}
	})
	l := begin(t, w.mount, w.mark, random)
	l.before, l.now, l.last, l.contents = past.now, past.now, past.last, past.contents
	layers := func() int {
		m, err := snapshot.Read(filepath.Join(w.mount, theSnapshot))
		require.NoError(t, err)
		return m.Layers
	}
	l.act(l.recover, func() { assert.Equal(t, manyLayers, layers()) })
	l.resume()
	l.pause()
	l.act(func() error {
		require.Eventually(t, func() bool { return layers() == 1 }, time.Minute, time.Millisecond, "no merge")
		return nil
	}, func() {})
	l.leave()
	l.cutEverywhere(t, w, random)
}
