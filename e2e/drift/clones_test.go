package drift_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

// cloneHeapMiB is small, since what the program changes is a clone's own.
const cloneHeapMiB = 16

// TestS05_ClonesAreTheirOwn starts several sandboxes of one snapshot at once: each is whole and goes on from
// where the first was, none shares what must not be shared, and together they take little more memory than one.
func TestS05_ClonesAreTheirOwn(t *testing.T) {
	before := harness.Take(t)
	s := start(t)
	clones := 10
	if testing.Short() {
		clones = 3
	}
	box := s.run(cloneHeapMiB)
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	defer cancel()
	last := s.check(box, report{})
	snapshot, _, err := s.Client.CreateSnapshot(ctx, box.SandboxID, "ten")
	require.NoError(t, err)
	s.moved(box, s.check(box, last)) // the first goes on
	files := filepath.Join(s.Dir, "agent", "snapshots")
	sums := checksums(t, files)

	all := make([]apiclient.Sandbox, clones)
	errs := make([]error, clones)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			all[i], errs[i] = s.TryCreate(apiclient.CreateRequest{TemplateID: snapshot.SnapshotID, Timeout: 3600})
		})
	}
	wg.Wait()
	rss, pss := vmmMemory(t, box.SandboxID)
	t.Logf("%d clones: RSS %d MiB, PSS %d MiB; the first took %v", clones, rss>>10, pss>>10, all[0].Wrenn)
	assert.Less(t, pss, rss*8/10, "clones do not share memory")
	unique := map[string]string{}
	for i, clone := range all {
		require.NoError(t, errs[i])
		assert.Equal(t, "restored", clone.Wrenn.BootPath)
		r := s.check(clone, last)
		closeEnough(t, r)
		s.moved(clone, r)
		own := s.Exec(clone, "/bin/sh", "-ec", `cat /etc/machine-id; hostname; exec python3 -c 'for i in range(100): print(open("/proc/sys/kernel/random/uuid").read(), end="")'`)
		lines := strings.Fields(own)
		require.Len(t, lines, 102)
		assert.Equal(t, clone.SandboxID, lines[1], "the host name is the sandbox's id")
		for _, l := range lines {
			assert.NotContains(t, unique, l, "two clones share it")
			unique[l] = clone.SandboxID
		}
		if i < clones-1 { // the others have the processors for themselves then
			require.NoError(t, s.Client.Kill(ctx, clone.SandboxID))
		}
	}
	assert.Equal(t, sums, checksums(t, files), "somebody has written into the snapshot")
	err = s.Client.DeleteSnapshot(ctx, snapshot.SnapshotID)
	var refused *apiclient.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, 409, refused.Code, "a snapshot in use was deleted")
	for _, b := range []apiclient.Sandbox{all[clones-1], box} {
		require.NoError(t, s.Client.Kill(ctx, b.SandboxID))
	}
	require.NoError(t, s.Client.DeleteSnapshot(ctx, snapshot.SnapshotID))
	s.end()
	before.Same(t)
}

// TestS09_ForksOfForks goes down a chain of forks, each of the last, and pauses one on the way.
func TestS09_ForksOfForks(t *testing.T) {
	before := harness.Take(t)
	s := start(t)
	depth := 4
	if testing.Short() {
		depth = 2
	}
	box := s.run(heapMiB)
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	defer cancel()
	chain := []apiclient.Sandbox{box}
	for i := range depth {
		s.dirty(box, dirtyMiB)
		last := s.check(box, report{})
		forks, _, err := s.Client.Fork(ctx, box.SandboxID, 1, 3600)
		require.NoError(t, err)
		require.Len(t, forks, 1)
		require.Nil(t, forks[0].Error)
		s.check(box, last)
		box = *forks[0].Sandbox
		chain = append(chain, box)
		s.moved(box, s.check(box, last))
		if i == depth/2 {
			s.pause(box)
			box = s.resume(box)
			s.moved(box, s.check(box, last))
		}
	}
	for _, b := range chain {
		s.check(b, report{})
		require.NoError(t, s.Client.Kill(ctx, b.SandboxID))
	}
	left, err := s.Client.ListSnapshots(ctx, "")
	require.NoError(t, err)
	assert.Empty(t, left, "what forks are made of stays")
	s.end()
	before.Same(t)
}

// checksums of the files below dir.
func checksums(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return err
		}
		sums[path] = fmt.Sprintf("%x", sum.Sum(nil))
		return nil
	}))
	require.NotEmpty(t, sums)
	return sums
}

// vmmMemory is what the emulators of this suite's sandboxes, but for one, take in KiB: each by itself, and in shares.
func vmmMemory(t *testing.T, but string) (rss, pss int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range found {
		cmdline, err := os.ReadFile(path)
		program, _, _ := strings.Cut(string(cmdline), "\x00")
		if err != nil || !strings.Contains(program, "qemu-system") && !strings.HasSuffix(program, "/firecracker") {
			continue
		}
		// The emulator's working directory is that of its sandbox.
		if dir, err := os.Readlink(filepath.Join(filepath.Dir(path), "cwd")); err != nil || !strings.Contains(dir, "/wrenn-e2e-") || filepath.Base(dir) == but {
			continue
		}
		rollup, err := os.ReadFile(filepath.Join(filepath.Dir(path), "smaps_rollup"))
		require.NoError(t, err)
		for l := range strings.Lines(string(rollup)) {
			f := strings.Fields(l)
			if len(f) < 2 {
				continue
			}
			n, err := strconv.Atoi(f[1])
			switch f[0] {
			case "Rss:":
				rss += n
			case "Pss:":
				pss += n
			default:
				continue
			}
			require.NoError(t, err)
		}
	}
	require.NotZero(t, rss, "no emulator was found")
	return rss, pss
}

// shell runs a script.
func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s: %s", script, out)
	return string(out)
}
