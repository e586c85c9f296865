package agent

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/memfile"
	"wrenn/impl/sandbox"
	"wrenn/impl/snapshot"
)

// pausedTwice makes a sandbox with a base and a diff and returns what it had at the end.
func pausedTwice(t *testing.T, a paperAgent, id string, random *rand.Rand) content {
	t.Helper()
	_, err := a.Create(t.Context(), sandbox.CreateRequest{ID: id, Template: "base", Timeout: time.Hour})
	require.NoError(t, err)
	a.machine(id).work(t, random)
	_, err = a.Pause(t.Context(), id, false)
	require.NoError(t, err)
	_, err = a.Resume(t.Context(), id, time.Hour, false, false)
	require.NoError(t, err)
	last := a.machine(id).work(t, random)
	_, err = a.Pause(t.Context(), id, false)
	require.NoError(t, err)
	return last
}

// TestS08_WhatIsCutTornChangedOrForeignIsRefusedByName damages each file of a snapshot, one way after the other, and
// tries to resume: it fails with the file's name, the sandbox stays paused, and goes on once the file is mended.
func TestS08_WhatIsCutTornChangedOrForeignIsRefusedByName(t *testing.T) {
	random := powerSeed(t)
	root := shortDir(t)
	paperImage(t, root)
	a := startPaperAgent(t, root)
	defer a.end()
	want := pausedTwice(t, a, theSandbox, random)
	pausedTwice(t, a, "other", random)
	dir, other := filepath.Join(root, theSnapshot), filepath.Join(root, "sandboxes/other/snapshot")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	refused := 0
	refuses := func(path, how string) {
		t.Helper()
		_, err := a.Resume(t.Context(), theSandbox, time.Hour, false, false)
		require.ErrorIs(t, err, snapshot.ErrDamaged, "%s %s", path, how)
		require.ErrorContains(t, err, path, how)
		info, err := a.Get(theSandbox)
		require.NoError(t, err)
		require.Equal(t, sandbox.Paused, info.State)
		refused++
	}
	for _, e := range entries {
		if snapshot.IsCache(e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		damageEach(t, path, random, func(how string) { refuses(path, how) })
		// The file of the same name of another sandbox, as a whole. A manifest is found out by what it says.
		require.NoError(t, os.Rename(path, path+".mine"))
		require.NoError(t, os.Rename(path+".mine", filepath.Join(root, "mine")))
		foreign, err := os.ReadFile(filepath.Join(other, e.Name()))
		require.NoError(t, err)
		mine, err := os.ReadFile(filepath.Join(root, "mine"))
		require.NoError(t, err)
		if !bytes.Equal(foreign, mine) {
			require.NoError(t, os.Link(filepath.Join(other, e.Name()), path))
			at := path
			if e.Name() == snapshot.ManifestName {
				at = dir
			}
			refuses(at, "of another sandbox")
			require.NoError(t, os.Remove(path))
		}
		require.NoError(t, os.Rename(filepath.Join(root, "mine"), path))
	}
	assert.Greater(t, refused, 100)
	_, err = a.Resume(t.Context(), theSandbox, time.Hour, false, false)
	require.NoError(t, err)
	want.same(t, a.machine(theSandbox).content(t), "mended")
	t.Logf("%d kinds of damage", refused)
}

// damageEach damages the file's pages, a sample of them, in each way, calls see, and mends it again.
func damageEach(t *testing.T, path string, random *rand.Rand, see func(how string)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	head := make([]byte, min(info.Size(), 1<<20)) // a disk has no more, and of memory no page beyond is used
	_, err = f.ReadAt(head, 0)
	require.NoError(t, err)
	mend := func() {
		require.NoError(t, f.Truncate(info.Size()))
		_, err := f.WriteAt(head, 0)
		require.NoError(t, err)
	}
	var holes func(at int64) bool
	if name := filepath.Base(path); strings.HasPrefix(name, "memory.") && !strings.HasSuffix(name, memfile.HeaderSuffix) {
		h, err := memfile.ReadHeader(path)
		require.NoError(t, err)
		holes = func(at int64) bool { // what lies there is nobody's
			for _, e := range h.Extents {
				if e.Offset <= at && at < e.End() {
					return false
				}
			}
			return true
		}
	}
	const sample = 16
	pages := random.Perm((len(head) + memfile.PageSize - 1) / memfile.PageSize)
	for _, page := range pages[:min(sample, len(pages))] {
		at := int64(page) * memfile.PageSize
		require.NoError(t, f.Truncate(at))
		see(fmt.Sprintf("cut at %d", at))
		mend()
	}
	done := 0
	for _, page := range pages {
		at := page * memfile.PageSize
		content := head[at:min(at+memfile.PageSize, len(head))]
		if done == sample || holes != nil && holes(int64(at)) {
			continue
		}
		done++
		bit := random.IntN(8 * len(content))
		changed := bytes.Clone(content)
		changed[bit/8] ^= 1 << (bit % 8)
		for how, damaged := range map[string][]byte{"a bit of": changed, "torn, without": make([]byte, len(content))} {
			if bytes.Equal(damaged, content) {
				continue
			}
			_, err := f.WriteAt(damaged, int64(at))
			require.NoError(t, err)
			see(fmt.Sprintf("%s the page at %d", how, at))
			mend()
		}
	}
}
