package snapshots_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/memfile"
)

// BenchmarkPause pauses and resumes a machine of 1 GiB that has changed so many MiB since it was restored, where
// disks are copied ("disk=copy", whatever this machine's file system is) and where they share blocks
// ("disk=reflink").
//
// Beside it another of the same snapshot, in the same state, is stopped and written by the VMM alone: "alone" is
// PATCH /vm and PUT /snapshot/create as a Diff, which syncs what it writes. The snapshot that was resumed is loaded once
// more by a VMM alone, out of the same flat file and with the disk already there ("alone" of the resume: from the start
// of the process to the answer of PATCH /vm Resumed), and "alone-answer" goes on until that guest's daemon answers,
// without which nobody can use it yet.
//
// "added" is what Wrenn's call takes longer than the VMM's own, in percent of that. Parts of Wrenn's calls end where
// the VMM's do: "until-commit" when the pause is durable, after which the host's resources are given back, and
// "until-vcpus" when the restored machine's processors run, after which its guest wakes. "writing" begins where the VMM's
// does, too: it is until-commit without the journal and without the guest's getting ready ("intent", "freeze"), for which
// the VMM's calls have nothing. Times of stages overlap.
func BenchmarkPause(b *testing.B) {
	b.Run("disk=copy", func(b *testing.B) { benchmarkPause(b, start(b)) })
	b.Run("disk=reflink", func(b *testing.B) {
		images, dir := sharesBlocks(b)
		benchmarkPause(b, startIn(b, images, dir))
	})
}

// settle is how long the guests are left alone before they are written: by then their kernels have written the disk
// back (see guest/wrenn-init), as they have in a machine that is paused since nobody uses it.
const settle = 6 * time.Second

func benchmarkPause(b *testing.B, s *harness.System) {
	b.Helper()
	defer s.Stop()
	source := create(b, s, large)
	dirty(b, s, source, 256, 0)
	gold, _, err := s.Client.CreateSnapshot(patience(b), source.SandboxID, "gold")
	require.NoError(b, err)
	alone := newBare(b, s, source.SandboxID)
	require.NoError(b, s.Client.Kill(patience(b), source.SandboxID))
	for _, mib := range []int{0, 16, 64, 256} {
		b.Run(fmt.Sprintf("dirty=%dMiB", mib), func(b *testing.B) {
			paused, resumed := figures{}, figures{}
			for round := range rounds {
				ours, raw := create(b, s, gold.SnapshotID), create(b, s, gold.SnapshotID)
				dirty(b, s, ours, mib, round)
				dirty(b, s, raw, mib, round)
				time.Sleep(settle)
				pauseBoth(b, s, ours, raw, round, paused)
				resumeBoth(b, s, ours, alone, round, resumed)
				for _, box := range []apiclient.Sandbox{ours, raw} {
					require.NoError(b, s.Client.Kill(patience(b), box.SandboxID))
				}
			}
			for name, of := range map[string]figures{"pause": paused, "resume": resumed} {
				for figure := range of {
					b.ReportMetric(of.median(figure), name+"-"+figure+"-p50-ms")
				}
				b.ReportMetric(of.added("total", "alone"), name+"-added-percent")
			}
			for _, part := range []string{"until-commit", "writing"} {
				b.ReportMetric(paused.added(part, "alone"), "pause-"+part+"-added-percent")
				b.ReportMetric(paused.added(part, "alone-durable"), "pause-"+part+"-added-to-durable-percent")
			}
			b.ReportMetric(resumed.added("until-vcpus", "alone"), "resume-until-vcpus-added-percent")
			b.ReportMetric(resumed.added("total", "alone-answer"), "resume-added-to-answer-percent")
			figures{}.report(b)
		})
	}
}

// added is how much longer something takes than what the VMM does alone, in percent of that.
func (f figures) added(name, alone string) float64 { return 100 * (f.median(name)/f.median(alone) - 1) }

// pauseBoth has the VMM write one machine, and pauses the other as users do; each goes first in every other round, since
// whoever does finds the machine idle.
func pauseBoth(b *testing.B, s *harness.System, ours, raw apiclient.Sandbox, round int, f figures) {
	b.Helper()
	for turn := range 2 {
		if (round+turn)%2 == 0 {
			pauseAlone(b, s, raw, f)
			continue
		}
		f.stages(pause(b, s, ours.SandboxID))
		// What follows the commit are the stages at the end.
		f.add("until-commit", f.last("total")-f.last("park")-f.last("store"))
		f.add("writing", f.last("until-commit")-f.last("intent")-f.last("freeze"))
	}
}

func pauseAlone(b *testing.B, s *harness.System, raw apiclient.Sandbox, f figures) {
	b.Helper()
	api := vmmAt(b, filepath.Join(boxDir(s, raw.SandboxID), "vmm.sock"))
	dir := filepath.Join(s.Dir, "agent/bare")
	calls := timed(b, func() error {
		if err := api.state("Paused"); err != nil {
			return err
		}
		return api.snapshot(dir, "Diff")
	})
	// The VMM has synced the memory. Who has nothing but the VMM is not done until the rest is on the disk, too.
	syncs := timed(b, func() error {
		return errors.Join(synced(filepath.Join(boxDir(s, raw.SandboxID), "root.disk")), synced(filepath.Join(dir, "vmstate")), synced(dir))
	})
	f.add("alone", calls)
	f.add("alone-durable", calls+syncs)
	require.NoError(b, os.RemoveAll(dir))
}

func synced(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (f figures) last(name string) float64 { return f[name][len(f[name])-1] }

// asCold takes a flat memory out of the page cache where Wrenn's machine has not found it there either: one that shares
// its blocks with the layers was not written, and has been read since by that machine alone.
func asCold(b *testing.B, path string) {
	b.Helper()
	f, err := os.Open(path)
	require.NoError(b, err)
	defer f.Close()
	var st unix.Statfs_t
	require.NoError(b, unix.Fstatfs(int(f.Fd()), &st))
	if st.Type == unix.XFS_SUPER_MAGIC {
		require.NoError(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	}
}

// resumeBoth resumes a machine as users do, and loads the same snapshot into a VMM alone; each goes first in every other
// round, since whoever does reads what the other then finds in memory, and both with the disk at rest.
func resumeBoth(b *testing.B, s *harness.System, box apiclient.Sandbox, alone *bare, round int, f figures) {
	b.Helper()
	for turn := range 2 {
		if (round+turn)%2 == 0 {
			resumeAlone(b, s, box, alone, f)
			continue
		}
		unix.Sync()
		boot := resume(b, s, box.SandboxID)
		f.stages(boot.Stages)
		f.add("total", boot.TotalMs)
		f.add("until-vcpus", boot.TotalMs-f.last("guest")-f.last("running")-f.last("store"))
	}
}

func resumeAlone(b *testing.B, s *harness.System, box apiclient.Sandbox, alone *bare, f figures) {
	b.Helper()
	snapshot, dir := filepath.Join(boxDir(s, box.SandboxID), "snapshot"), filepath.Join(s.Dir, "agent/bare")
	require.NoError(b, os.Mkdir(dir, 0o700))
	layers, err := filepath.Glob(filepath.Join(snapshot, "memory.[0-9]"))
	require.NoError(b, err)
	chain, err := memfile.Open(layers...)
	require.NoError(b, err)
	memory := filepath.Join(dir, "memory")
	_, err = chain.Flatten(patience(b), memory)
	require.NoError(b, errors.Join(err, chain.Close()))
	forget := alone.copyDisk(b, snapshot)
	unix.Sync()
	asCold(b, memory)
	launched, loaded, answered := alone.load(b, snapshot, memory)
	f.add("alone-launch", launched)
	f.add("alone-load", loaded)
	f.add("alone", launched+loaded)
	f.add("alone-answer", launched+loaded+answered)
	require.NoError(b, errors.Join(forget(), os.RemoveAll(dir)))
}

// BenchmarkStart measures from the call that creates a sandbox to the end of its first command, of a cold boot
// and from a named snapshot, by both ways to provide memory. "faster" is how many times.
func BenchmarkStart(b *testing.B) {
	for _, backend := range []string{"file", "uffd"} {
		b.Run("memory="+backend, func(b *testing.B) {
			s := start(b, "--memory-backend", backend)
			defer s.Stop()
			source := create(b, s, "base")
			s.Exec(source, "true")
			snap, _, err := s.Client.CreateSnapshot(patience(b), source.SandboxID, "gold")
			require.NoError(b, err)
			require.NoError(b, s.Client.Kill(patience(b), source.SandboxID))
			f := figures{}
			for range rounds {
				for name, template := range map[string]string{"cold": "base", "restored": snap.SnapshotID} {
					var box apiclient.Sandbox
					f.add(name, timed(b, func() error {
						box = create(b, s, template)
						return nil
					}))
					f.add(name+"-exec", timed(b, func() error { _, err := s.TryExec(box, "true"); return err }))
					if name == "restored" {
						f.stages(box.Wrenn.Stages)
					}
					require.NoError(b, s.Client.Kill(patience(b), box.SandboxID))
				}
			}
			b.ReportMetric((f.median("cold")+f.median("cold-exec"))/(f.median("restored")+f.median("restored-exec")), "times-faster")
			f.report(b)
		})
	}
}
